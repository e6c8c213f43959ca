"""Instruction residuals: mergekit's bits, what is refused, what is matched by token, memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from console import UserError
from tests.conftest import ROOT
from tests.trainer.merging.residual_models import CASES, NEW, TEMPLATE, Trio, write_model, write_trio
from tests.trainer.merging.residual_oracle import RECORDED, digests, merged_by_mergekit
from trainer.merging.residual import artefact
from trainer.merging.residual.artefact import add_residual, make_residual
from trainer.merging.residual.models import LazyWeights, Vocabulary, open_model
from trainer.merging.residual.saved import open_residual
from trainer.merging.residual.vocabulary import match_rows, rows_of_base
from trainer.residual_command import residual_command


def restored(trio: Trio, folder: Path, **options: Any) -> Path:
    """The descendant with the residual; the folder with hf/."""
    residual = make_residual(open_model("instruct", trio.instruct), open_model("base", trio.base), folder / "residual")
    add_residual(residual, open_model("descendant", trio.descendant), folder / "out", **options)
    return folder / "out"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


# --- mergekit's bits ---


@pytest.mark.parametrize("case", CASES)
def test_equals_mergekit_to_the_last_bit(case: str, tmp_path: Path) -> None:
    """Against SHA-256 of what mergekit itself has written (tests/trainer/merging/residual_oracle.py)."""
    recorded = json.loads(RECORDED.read_text())["sha256"][case]
    assert digests(restored(write_trio(tmp_path / "models", case), tmp_path) / "hf") == recorded


def test_another_scale_is_not_mergekits(tmp_path: Path) -> None:
    recorded = json.loads(RECORDED.read_text())["sha256"]["tied"]
    ours = digests(restored(write_trio(tmp_path / "models", "tied"), tmp_path, scale=0.99) / "hf")
    assert ours.keys() == recorded.keys() and ours["model.embed_tokens.weight"] != recorded["model.embed_tokens.weight"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_equals_mergekit_run_now(case: str, tmp_path: Path) -> None:
    """Builds mergekit's environment where it is not there."""
    subprocess.run([str(ROOT / "requirements/install-mergekit.sh")], check=True, timeout=600)
    theirs = tensors(merged_by_mergekit(tmp_path / "mergekit", case))
    ours = tensors(restored(write_trio(tmp_path / "models", case), tmp_path) / "hf")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name
    assert digests(tmp_path / "out/hf") == json.loads(RECORDED.read_text())["sha256"][case]


def test_added_to_its_own_base_it_makes_the_instruct_model(tmp_path: Path) -> None:
    trio = write_trio(tmp_path / "models", "tied_instruct_grown")
    out = restored(Trio(trio.base, trio.instruct, trio.base), tmp_path)
    ours, theirs = tensors(out / "hf"), tensors(trio.instruct)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and ours.keys() == theirs.keys()


# --- the artefact ---


def test_the_artefact_says_what_it_is(tmp_path: Path) -> None:
    trio = write_trio(tmp_path / "models", "tied")
    residual = make_residual(
        open_model("org/instruct", trio.instruct), open_model("org/base", trio.base), tmp_path / "r", shard_bytes=20_000
    )
    manifest = json.loads((tmp_path / "r/manifest.json").read_text())
    assert manifest["instruct"]["model"] == "org/instruct" and manifest["dtype"] == "float32"
    assert {"instruct/tokenizer.json", "base/config.json"} < set(manifest["files"]) and all(
        len(facts["sha256"]) == 64 for facts in manifest["files"].values()
    )
    assert 0.02 < manifest["relative_norm"] < 0.06  # 0.003 on 0.03, and norms of one
    one, other, difference = tensors(trio.instruct), tensors(trio.base), tensors(tmp_path / "r/weights")
    assert difference.keys() == one.keys() and "lm_head.weight" not in difference  # tied: once
    assert all(torch.equal(difference[name], one[name].float() - other[name].float()) for name in one)
    assert open_residual(tmp_path / "r").manifest == residual.manifest == manifest
    broken = next((tmp_path / "r/weights").glob("*.safetensors"))
    content = bytearray(broken.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(bytes(content))
    with pytest.raises(UserError, match="SHA-256 is not the one in its manifest; make the residual again"):
        open_residual(tmp_path / "r")


def test_many_shards_hold_what_one_does(tmp_path: Path) -> None:
    trio = write_trio(tmp_path / "models", "untied")
    residual = make_residual(open_model("i", trio.instruct), open_model("b", trio.base), tmp_path / "r")
    descendant = open_model("d", trio.descendant)
    one = add_residual(residual, descendant, tmp_path / "one")
    many = add_residual(residual, descendant, tmp_path / "many", shard_bytes=10_000)
    assert [len([name for name in of["files"] if name.endswith(".safetensors")]) > 3 for of in (one, many)] == [False, True]
    assert digests(tmp_path / "one/hf") == digests(tmp_path / "many/hf")
    index = json.loads((tmp_path / "many/hf/model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors(tmp_path / "one/hf"))


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trio = write_trio(tmp_path / "models", "untied")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(artefact, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_residual(open_model("i", trio.instruct), open_model("b", trio.base), tmp_path / "r")
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


# --- config, tokenizer, chat template ---


def test_the_result_speaks_as_the_instruct_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trio = write_trio(tmp_path / "models", "tied_instruct_grown")
    config = json.loads((trio.descendant / "config.json").read_text())
    (trio.descendant / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 48}))
    out = restored(trio, tmp_path)
    manifest = json.loads((out / "manifest.json").read_text())
    assert any("max_position_embeddings is 48 in descendant and 64 in base" in note for note in manifest["notes"])
    tokenizer = AutoTokenizer.from_pretrained(out / "hf", trust_remote_code=False)
    assert tokenizer.chat_template == TEMPLATE and set(NEW) <= set(tokenizer.get_vocab())
    model = AutoModelForCausalLM.from_pretrained(out / "hf", trust_remote_code=False)
    assert model.config.max_position_embeddings == 48  # the network's settings are the descendant's
    assert model.config.vocab_size == len(tokenizer) == model.get_input_embeddings().weight.shape[0]
    assert model.generation_config.eos_token_id == [2, len(tokenizer) - 1]
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([[1, 5, len(tokenizer) - 1]])).logits).all()


def test_a_grown_descendant_keeps_its_tokenizer_and_gets_the_template(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = write_model(tmp_path / "base", 1)
    instruct = write_model(tmp_path / "instruct", 2, base, template="{{ messages[0].content }}")
    descendant = write_model(tmp_path / "descendant", 3, base, added=NEW, shift=True)
    out = restored(Trio(base, instruct, descendant), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(out / "hf", trust_remote_code=False)
    assert tokenizer.convert_tokens_to_ids(NEW[0]) == 100 and tokenizer.chat_template == "{{ messages[0].content }}"
    ours, theirs = (tensors(folder)["model.embed_tokens.weight"] for folder in (out / "hf", descendant))
    assert torch.equal(ours[100], theirs[100]) and not torch.equal(ours[101], theirs[101])
    ours, theirs, before = (tensors(folder)["lm_head.weight"] for folder in (out / "hf", instruct, base))
    descended = tensors(descendant)["lm_head.weight"]
    assert torch.equal(ours[101], (descended[101].float() + theirs[100].float() - before[100].float()).bfloat16())


# --- rows by token ---


def words(*tokens: str, rows: int | None = None) -> Vocabulary:
    """A vocabulary; "" is a row without a token."""
    return Vocabulary(rows or len(tokens), {token: row for row, token in enumerate(tokens) if token})


def test_rows_are_matched_by_token() -> None:
    base, instruct, descendant = words("a", "b", ""), words("b", "<u>", "a", ""), words("a", "b", "", "")
    rows, notes = rows_of_base(instruct, base)
    assert rows.tolist() == [1, -1, 0, -1] and "1 token ('<u>') only in the instruct model" in notes[0]
    # <u> stands at number 1, which the descendant has given to "b": it has no row for it.
    found = match_rows(instruct, rows >= 0, descendant, "instruct", "d")
    assert found.tokenizer_of == "instruct" and found.descendant.tolist() == [1, -1, 0, 3] and found.residual.tolist() == [0, 1, 2, 3]
    assert found.is_sum.tolist() == [True, False, True, False] and found.is_instruct.tolist() == [False, True, False, True]


def test_a_renamed_token_is_the_row_of_its_number() -> None:
    """As `<|reserved_special_token_2|>` of Llama 3 is `<|finetune_right_pad_id|>` of 3.1: the sibling's residual fits all the same."""
    sibling, descendant = words("a", "<pad>", "", rows=3), words("a", "", "", rows=3)
    rows, _ = rows_of_base(sibling, sibling)
    found = match_rows(sibling, rows >= 0, descendant, "instruct", "d")
    assert found.is_plain and "1 token ('<pad>') matched with the free row of the same number in the descendant" in found.notes[0]


def test_what_the_descendant_has_named_in_a_free_row_keeps_its_row_and_name() -> None:
    """A token of one's own in a reserved or padded row: the instruct model's tokenizer would not know it, and its row would be zeros."""
    base, descendant = words("a", "b", "", rows=4), words("a", "b", "<doc>", rows=4)
    rows, _ = rows_of_base(base, base)
    found = match_rows(base, rows >= 0, descendant, "instruct", "d")
    assert found.tokenizer_of == "descendant" and found.is_plain
    with pytest.raises(UserError, match=r"it has 1 token \('<doc>'\) that the instruct model lacks, and lacks 1 token \('<pad>'\)"):
        match_rows(words("a", "b", "", "<pad>"), rows >= 0, descendant, "instruct", "d")  # each has named another free row


@pytest.mark.parametrize("whose", ["instruct", "descendant"])
def test_tokens_that_both_have_grown_are_whose_is_said(whose: Any) -> None:
    base, grown = words("a"), words("a", "<u>")
    rows, _ = rows_of_base(grown, base)
    found = match_rows(grown, rows >= 0, grown, whose, "d")
    assert found.is_instruct.tolist() == [False, whose == "instruct"] and found.is_sum.tolist() == [True, False]
    assert f"in both and not in the base: the {whose}'s rows" in found.notes[0]


def test_padding_that_the_descendant_has_cut_off_is_zeros() -> None:
    padded, cut = words("a", "b", "", ""), words("a", "b")
    found = match_rows(padded, np.ones(4, bool), cut, "instruct", "d")
    assert found.is_sum.tolist() == [True, True, False, False] and not found.is_instruct.any()
    assert "2 padded rows that the descendant lacks: zeros" in found.notes[0]


@pytest.mark.parametrize(
    ("descendant", "reason"),
    [
        (words("a", "c"), r"lacks 1 token \('b'\) that the base has: it is no descendant of that base"),
        (words("a", "b", "<d>"), r"it has 1 token \('<d>'\) that the instruct model lacks, and lacks 1 token \('<u>'\)"),
    ],
)
def test_vocabularies_that_cannot_be_matched_are_refused(descendant: Vocabulary, reason: str) -> None:
    instruct = words("a", "b", "<u>")
    with pytest.raises(UserError, match=reason):
        match_rows(instruct, np.array([True, True, False]), descendant, "instruct", "d")


def test_rows_are_read_in_runs(tmp_path: Path) -> None:
    table = torch.arange(40.0).reshape(10, 4)
    save_file({"t": table}, tmp_path / "model.safetensors")
    for rows in ([3, 4, 5], [-1, 0, 1], [9, -1, -1, 0, 5], [-1], [2, 1, 0]):
        expected = torch.stack([table[row] if row >= 0 else torch.zeros(4) for row in rows])
        assert torch.equal(LazyWeights(tmp_path).take("t", np.array(rows)), expected), rows


# --- what is refused ---


def rewrite(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# --- the command ---


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trio = write_trio(tmp_path / "models", "tied_instruct_grown")
    assert residual_command(["make", str(trio.instruct), str(trio.base), "--out", str(tmp_path / "r")]) == 0
    assert residual_command(["apply", str(tmp_path / "r"), str(trio.descendant), "--out", str(tmp_path / "m"), "--scale", "0.5", "1"]) == 0
    assert digests(tmp_path / "m/scale-1/hf") == json.loads(RECORDED.read_text())["sha256"]["tied_instruct_grown"]
    half, whole = tensors(tmp_path / "m/scale-0.5/hf"), tensors(tmp_path / "m/scale-1/hf")
    assert not torch.equal(half["model.norm.weight"], whole["model.norm.weight"])
    printed = capsys.readouterr()
    assert "2 tokens ('<|user|>', '<|end|>') only in the instruct model" in printed.err and "scale-0.5" in printed.out
    with pytest.raises(UserError, match="is there already; give another --out"):
        residual_command(["make", str(trio.instruct), str(trio.base), "--out", str(tmp_path / "r")])
    with pytest.raises(UserError, match="holds no model"):
        residual_command(["apply", str(tmp_path / "r"), str(tmp_path), "--out", str(tmp_path / "x")])


def test_a_mismatch_ends_with_code_2_and_one_line(tmp_path: Path, run_command: Any) -> None:
    trio = write_trio(tmp_path / "models", "untied")
    set_config(trio.instruct, model_type="mistral")
    done = run_command("trainer", "residual", "make", str(trio.instruct), str(trio.base), "--out", str(tmp_path / "r"))
    assert done.returncode == 2 and "another architecture" in done.stderr and "Traceback" not in done.stderr


# --- memory ---

_MEASURE = """
import json, sys
from pathlib import Path
from trainer.merging.residual.artefact import add_residual, make_residual
from trainer.merging.residual.models import open_model

def peak_mib():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:"))) / 1024

def restore(folder, shard):
    models = {name: open_model(name, folder / name) for name in ("base", "instruct", "descendant")}
    residual = make_residual(models["instruct"], models["base"], folder / "r", shard)
    made = peak_mib()
    add_residual(residual, models["descendant"], folder / "out", shard_bytes=shard)
    return made

restore(Path(sys.argv[1]), 10_000)  # what the libraries load when they are first used is no shard
Path("/proc/self/clear_refs").write_text("5")
before = peak_mib()
made = restore(Path(sys.argv[2]), int(sys.argv[3]))
print(json.dumps([before, made, peak_mib()]))
"""


def test_peak_memory_is_at_most_two_shards(tmp_path: Path) -> None:
    """Models of some 65 MiB (the residual 130) in shards of 16 MiB, in a process of their own; what libraries take is not counted."""
    big = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 8}
    shard = 16 * 2**20
    write_trio(tmp_path / "small", "untied")
    write_model(tmp_path / "big/base", 1, settings=big, large=True)
    for role in ("instruct", "descendant"):
        (tmp_path / "big" / role).mkdir()
        for file in (tmp_path / "big/base").iterdir():
            (tmp_path / "big" / role / file.name).symlink_to(file)
    assert (tmp_path / "big/base/model.safetensors").stat().st_size > 4 * shard
    code = [sys.executable, "-c", _MEASURE, str(tmp_path / "small"), str(tmp_path / "big"), str(shard)]
    done = subprocess.run(code, cwd=ROOT, text=True, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr
    before, made, added = json.loads(done.stdout.splitlines()[-1])
    assert max(made, added) - before <= 2 * shard / 2**20, (before, made, added)
    assert len(list((tmp_path / "big/out/hf").glob("*.safetensors"))) > 4
