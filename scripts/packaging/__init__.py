"""The bundle as one archive for the model zoo, and what must not be in it. ``make package`` runs it."""
