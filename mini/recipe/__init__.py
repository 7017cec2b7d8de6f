"""How the small models are made: text, skills, training, evaluation, export.

    python -m distill.mini.recipe.train --arch llama      # one model, from nothing
    python -m distill.mini.recipe.evaluate --arch llama   # what it can do, and how sensitive it is

The text lies in `../shared/data/gutenberg`, or wherever `DISTILL_SHARED` says.
"""
