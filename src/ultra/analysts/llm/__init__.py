"""Language models as analysts: `llm:PROVIDER/MODEL`. Everything heavy is imported when it is used."""
