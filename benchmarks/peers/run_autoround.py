"""auto-round: signed-gradient rounding after calibration. Runs in $PEERS/autoround."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import common


def best(scheme: str, iterations: str = "200") -> None:
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    bits, asymmetric = common.bits_of(scheme)
    model = common.llama()
    tokenizer = AutoTokenizer.from_pretrained(common.DATA / "bench_llama")
    data = [row.unsqueeze(0) for row in common.tokens("calibration")]
    tool = AutoRound(
        model, tokenizer, bits=bits, group_size=common.GROUP, sym=not asymmetric, iters=int(iterations), dataset=data,
        nsamples=len(data), seqlen=256, batch_size=8, device_map="cpu", enable_torch_compile=False, amp=False,
    )  # fmt: skip
    kept: list[object] = []
    seconds = common.timed(lambda: kept.append(tool.quantize()))
    name = common.versions("auto-round", "transformers")
    common.report(seconds=seconds, perplexity=common.perplexity(kept[0][0].float()), version=name)  # type: ignore[index]


if __name__ == "__main__":
    common.main({"best": best})
