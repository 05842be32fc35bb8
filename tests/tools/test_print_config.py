def test_settings_come_first_with_their_keys(run_tool):
    done = run_tool(
        "tools/print_config.py", "toy_finetune_lora", "--set", "lr=5e-5", "--cfg-options", "log_level=DEBUG"
    )
    assert done.returncode == 0, done.stderr
    settings, resolved = done.stdout.split("# ---- Resolved\n")
    assert "lr = 5e-05  # optim_wrapper.optimizer.lr: learning rate" in settings
    assert "max_tiles = 6  # train_dataloader.dataset.max_tiles: + thumbnail\n" in settings
    assert "\npack_tokens  # train_dataloader.batch_sampler.max_tokens: " in settings  # without a value here
    names = {}
    exec(resolved, names)  # MMEngine prints a config that could be read again
    assert names["optim_wrapper"]["optimizer"]["lr"] == 5e-5 and names["log_level"] == "DEBUG"
    assert names["model"]["type"].endswith("VisionLanguageModel")
