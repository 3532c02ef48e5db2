"""GenEval: prompts, images in the official layout, a judge without mmdetection, and a report."""
