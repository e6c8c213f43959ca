"""One machine without a cluster: the trainer's settings where they fit its GPUs, else what the plan finds, said aloud."""

from cluster.cost.chips import GIB, Hardware
from cluster.cost.memory import SetUp
from cluster.local import local_hardware
from cluster.plan import question_of, refuse_hopeless
from cluster.setups import Offer, Question, advise, best, offer
from console import UserError
from experiment import Experiment
from trainer.config import TrainerConfig


def settings_here(experiment: Experiment, num_gpus: int) -> tuple[TrainerConfig, str]:
    """`fitting` on this machine's GPUs; as the experiment has it where the cost model does not know the GPU or the model."""
    try:
        here = local_hardware().with_gpus(num_gpus)
        question = question_of(experiment, here)
    except UserError as error:
        return experiment.trainer, f"not planned, trained as the experiment has it: {error}"
    return fitting(experiment.trainer, question, here)


def fitting(trainer: TrainerConfig, question: Question, hardware: Hardware) -> tuple[TrainerConfig, str]:
    """(settings to train with, one line on what was chosen and why). UserError, naming what is missing, where nothing fits.

    Only what changes neither batches nor weights is chosen: ZeRO stage, length of rows (never below an item), recomputation, states in
    host memory; and fewer GPUs, where all of them cannot.
    """
    as_written = offer(question, question.file, hardware)
    if as_written.fits:
        return trainer, f"{hardware}: {_told(as_written)}"
    advice = advise(question, hardware)
    refuse_hopeless(advice, hardware)
    chosen = best(advice.offers) or advice.recommended
    assert chosen is not None
    line = f"{chosen.hardware}: {as_written.set_up} does not fit ({'; '.join(as_written.problems)}); instead {_told(chosen)}"
    if chosen.set_up.offload:
        line += f". A step has {chosen.tokens_per_step:,.0f} tokens: the larger it is, the less states in host memory cost"
    return _with(trainer, chosen.set_up, chosen), line


def _with(trainer: TrainerConfig, set_up: SetUp, chosen: Offer) -> TrainerConfig:
    return trainer.model_copy(
        update={
            "num_workers": chosen.hardware.num_gpus,
            "zero_stage": set_up.zero_stage,
            "row_tokens": set_up.row_tokens,
            "gradient_checkpointing": set_up.recompute,
            "offload_optimizer": set_up.offload,
        }
    )


def _told(one: Offer) -> str:
    return f"{one.set_up}; {one.gpu.total / GIB:,.1f} GiB of a GPU and {one.host.peak / GIB:,.0f} GiB of host memory, modelled"
