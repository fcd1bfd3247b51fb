"""BibTeX for what a run used."""

from __future__ import annotations

ENTRIES = {
    "thalweg": """@software{thalweg,
  title = {Thalweg: measuring the low-loss basin of quantized networks},
  year = {2026}
}""",
    "theory": """@article{li2026understanding,
  title = {Understanding Quantization-Aware Training: Gradients at Quantized Weights Bias to the Low-Loss Basin},
  author = {Li and Ma and Cui},
  journal = {arXiv:2606.09012},
  year = {2026}
}""",
    "gptq": """@inproceedings{frantar2023gptq,
  title = {{GPTQ}: Accurate Post-Training Quantization for Generative Pre-trained Transformers},
  author = {Frantar, Elias and Ashkboos, Saleh and Hoefler, Torsten and Alistarh, Dan},
  booktitle = {ICLR},
  year = {2023},
  note = {arXiv:2210.17323}
}""",
    "ste": """@article{bengio2013estimating,
  title = {Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation},
  author = {Bengio, Yoshua and L{\\'e}onard, Nicholas and Courville, Aaron},
  journal = {arXiv:1308.3432},
  year = {2013}
}""",
    "nf4": """@inproceedings{dettmers2023qlora,
  title = {{QLoRA}: Efficient Finetuning of Quantized {LLMs}},
  author = {Dettmers, Tim and Pagnoni, Artidoro and Holtzman, Ari and Zettlemoyer, Luke},
  booktitle = {NeurIPS},
  year = {2023},
  note = {arXiv:2305.14314}
}""",
}


def citations(*used: str) -> str:
    """Entries for Thalweg, the theory, and the named methods, estimators and schemes."""
    keys = ["thalweg", "theory"]
    for word in used:
        keys += [key for key in ENTRIES if word.replace("qat:", "").startswith(key) and key not in keys]
    return "\n\n".join(ENTRIES[key] for key in keys)
