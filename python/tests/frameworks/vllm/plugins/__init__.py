def load_general_plugins():
    from importlib.metadata import entry_points

    for plugin in entry_points(group="vllm.general_plugins"):
        plugin.load()()
