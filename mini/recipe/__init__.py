"""How the small models are made: text, skills, training, evaluation, export.

    python -m distill.mini.recipe.train --arch llama      # one model, from nothing
    python -m distill.mini.recipe.evaluate --arch llama   # what it can do, and how sensitive it is

The text lies in `data/gutenberg` in the folder that `DISTILL_SHARED` names, or else in `shared` beside the package's
sources: books of Project Gutenberg as `*TITLE*.txt.gz`; `books.py` lists them.
"""
