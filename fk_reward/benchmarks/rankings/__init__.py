"""Human preferences in public formats: HPDv2 and v3, ImageReward, Pick-a-Pic, GenAI-Bench and MMRB2."""
