"""Programs: what an analyst proposes, as guarded assignments with free numbers. The language and its executor."""
