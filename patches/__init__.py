"""How a stock Transformers decoder is made to drop tokens. Knows no method and no architecture."""
