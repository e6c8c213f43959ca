"""A stage on made people, encoded and planned, as files that streams of rows read."""

from pathlib import Path

from data.config import Bios, Stage
from data.corpus.bios import make_bios
from data.curriculum.catalogue import catalogue_of
from data.curriculum.plan import Plan, compile_plan
from data.rows.token_store import TokenStore, write_store
from data.tokens import Encoder
from data.wording.tiny_tokenizer import make_tokenizer


def planned(folder: Path, people: int, epochs: int, batch_items: int) -> tuple[Plan, TokenStore]:
    """Their documents and questions; writes folder/tokens and folder/plan.npz."""
    catalogue = catalogue_of(make_bios(Bios(replay_people=0, train_people=people, test_people=5), 0))
    encoder = Encoder(make_tokenizer([r.text for r in catalogue.records["train_documents"]], 600))  # type: ignore[union-attr]
    store = write_store(folder / "tokens", catalogue, encoder)
    mix = {"train_documents": 1, "train_questions": 1}
    plan = compile_plan(Stage.model_validate({"mix": mix, "epochs": epochs, "batch_items": batch_items, "rate": 1.0}), catalogue, 0)
    plan.save(folder / "plan.npz")
    return plan, store
