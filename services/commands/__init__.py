"""The commands of `trustbatch`, by what they are for. Each imports what it needs when it runs."""
