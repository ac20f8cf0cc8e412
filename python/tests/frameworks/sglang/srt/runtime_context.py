from types import SimpleNamespace

PARALLEL = SimpleNamespace(tp_rank=0, ep_join_rank_offset=0)
SERVING = SimpleNamespace(served_model_name="served")


def get_parallel():
    return PARALLEL


def get_serving():
    return SERVING
