"""The page of `fk-reward ui`: a form, the particles of a run as they are scored, and what came of it."""
