"""The application as a module: `fastapi run distill/api.py`, or `uvicorn distill.api:app`.

Settings come from the environment, or from a file `.env` in the working directory (see `docs/pruning.md`).
"""

from distill.serving.environment import app_from_environment

app = app_from_environment()
