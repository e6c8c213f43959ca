"""How many GPUs one engine of the exam takes, and how many engines a cluster holds. The planner reckons with it, the exam does it."""

_FOR_WEIGHTS = 0.75
"""Of a GPU's memory. vLLM takes 90 %; the rest is for keys and values and what a forward pass needs."""


def gpus_of_engine(weight_bytes: float, gpu_bytes: float, per_node: int) -> int:
    """The smallest power of two that holds the weights, at most the GPUs of a node: tensor parallelism splits heads evenly."""
    count = 1
    while count * _FOR_WEIGHTS * gpu_bytes < weight_bytes and 2 * count <= max(1, per_node):
        count *= 2
    return count


def engines_at_once(gpus: int, gpus_by_node: list[int], models: int) -> int:
    """Of engines with so many GPUs each, none over two nodes; at least one, no more than there are models. Without GPUs one."""
    room = sum(there // gpus for there in gpus_by_node) if gpus else 1
    return max(1, min(room, models))
