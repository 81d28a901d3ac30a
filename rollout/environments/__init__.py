"""Where prompts come from and completions are scored: a single question, or many turns."""
