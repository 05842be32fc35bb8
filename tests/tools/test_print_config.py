def test_settings_come_first_with_their_comments(run_tool):
    done = run_tool(
        "tools/print_config.py", "toy_finetune_lora", "--set", "lr=5e-5", "--cfg-options", "log_level=DEBUG"
    )
    assert done.returncode == 0, done.stderr
    settings, resolved = done.stdout.split("# ---- Resolved\n")
    assert "lr = 5e-5\n" in settings and "max_tiles = 6  # + thumbnail\n" in settings and "model" not in settings
    names = {}
    exec(resolved, names)  # MMEngine prints a config that could be read again
    assert names["optim_wrapper"]["optimizer"]["lr"] == 5e-5 and names["log_level"] == "DEBUG"
    assert names["model"]["type"].endswith("VisionLanguageModel")
