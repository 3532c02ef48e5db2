"""One step of gradient descent at learning rate 1, so that the change of the weights is the gradient; writes them."""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import save_file

from tests.tiny.training import make_model, make_trainer, pairs, trained_weights


def main(backbone: str, out: str, batch_size: str) -> None:
    model = make_model(backbone, dropout=0.0)
    settings = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "warmup_steps": 0, "max_grad_norm": 0.0}
    settings |= {"per_device_train_batch_size": int(batch_size), "per_device_eval_batch_size": 1}
    trainer = make_trainer(model, Path(out), pairs(4), **settings)
    trainer.train()
    metrics = trainer.evaluate(pairs(3))
    trainer.save_model(out)
    if trainer.is_world_process_zero():
        save_file(trained_weights(model), Path(out) / "trained.safetensors")
        (Path(out) / "loss.txt").write_text(f"{trainer.args.world_size} {metrics['eval_loss']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
