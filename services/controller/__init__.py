"""The controller: narrows admission and lag while the data cannot be trusted, and widens them again. Off by default."""
