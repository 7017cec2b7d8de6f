"""RULER's tasks, generated locally: words, haystacks and the search for the size that fits a token budget."""
