"""The command line. Everything heavy is imported when it is used."""
