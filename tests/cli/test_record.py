"""`fk-reward record`."""

from fk_reward.search.replay.records import RewardRecords
from fk_reward.training.predictions import PredictionRecords

OPTIONS = ("--steps", 3, "--num-seeds", 2, "--batch-size", 2, "-r", "brightness", "--device", "cpu")


def test_records_are_written_and_the_next_command_is_said(run, model, tmp_path):
    first = run("record", "a star", "a circle", "--out", tmp_path / "out", "--model", model, *OPTIONS)
    assert first.exit_code == 0, first.output
    assert "2 prompts x 2 seeds x 3 steps" in first.stdout
    path = tmp_path / "out" / "records.npz"
    assert f"fk-reward replay {path} --reward brightness" in first.stdout
    records = RewardRecords.load(path)
    assert records.shape == (2, 2, 3) and records.prompts == ("a star", "a circle")
    assert records.settings["model"] == model and records.settings["reward_weights"].keys() == {"brightness"}
    again = run("record", "a star", "a circle", "--out", tmp_path / "out", "--model", model, *OPTIONS)
    assert again.exit_code == 0, again.output


def test_a_dry_run_only_says_what_it_would_cost(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("a star\n\na circle\n")
    out = tmp_path / "out"
    result = run("record", "--prompts-from", tmp_path / "prompts.txt", "--out", out, "--dry-run", *OPTIONS)
    assert result.exit_code == 0, result.output
    assert "2 prompts x 2 seeds x 3 steps" in result.stdout and "(12)" in result.stdout and not out.exists()
    shapes = run("record", "--suite", "shapes", "--num-prompts", 3, "--out", out, "--dry-run")
    assert "3 prompts x 64 seeds x 50 steps" in shapes.stdout


def test_prompts_come_from_one_source(refused, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    assert "Give prompts, or --prompts-from" in refused("record", "--out", tmp_path / "out")
    assert "Give prompts" in refused("record", "a", "--suite", "shapes", "--out", tmp_path / "out")
    assert "holds no prompt" in refused("record", "--prompts-from", tmp_path / "empty.txt", "--out", tmp_path / "out")
    assert "goes with --suite" in refused("record", "a", "--num-prompts", 2, "--out", tmp_path / "out")


def test_an_unknown_reward_is_refused_before_anything_is_drawn(refused, tmp_path):
    message = refused("record", "a star", "--out", tmp_path / "out", "-r", "beauty", "--device", "cpu")
    assert "Known rewards" in message and not list((tmp_path / "out").glob("*.jsonl"))


def test_predictions_are_kept_measured_and_their_training_is_said(run, model, tmp_path):
    out = tmp_path / "kept"
    options = ("--keep-predictions", 0.9, 0.5, "--prediction-format", "webp", *OPTIONS)
    result = run("record", "a star", "a circle", "--out", out, "--model", model, *options)
    assert result.exit_code == 0, result.output
    assert "2 predictions of each trajectory" in result.stdout and f"--train_data {out}" in result.stdout
    records = PredictionRecords.load(out)
    assert records.num_seeds == 2 and len(records.levels) == 2 and list(records.scores) == ["brightness"]
    assert not (out / "records.npz").exists()
    measured = run("noise-accuracy", out, "-r", "brightness", "--device", "cpu", "--out", tmp_path / "table")
    assert measured.exit_code == 0, measured.output
    assert "pairs in order" in measured.stdout and (tmp_path / "table" / "noise_accuracy.json").is_file()


def test_the_time_is_an_estimate_from_the_speed(run, tmp_path):
    options = ("--suite", "shapes", "--num-prompts", 3, "--num-seeds", 2, "--steps", 4, "--dry-run")
    result = run("record", "--out", tmp_path / "out", *options, "--tflops", "1")
    assert result.exit_code == 0, result.output
    assert "hours on one GPU" in result.stdout


def test_bands_are_those_of_one_reward(refused, tmp_path):
    message = refused("noise-accuracy", tmp_path, "-r", "brightness", "-r", "other", "--bands", tmp_path)
    assert "--bands are those of one reward" in message
