"""GenEval: prompts, pictures in the official layout, a judge without mmdetection, and a report."""
