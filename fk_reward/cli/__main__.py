"""`python -m fk_reward.cli`, which `accelerate launch -m` can start."""

from fk_reward.cli import main

main()
