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
    "gptq-babai": """@article{chen2025geometry,
  title = {The Geometry of {LLM} Quantization: {GPTQ} as {Babai}'s Nearest Plane Algorithm},
  author = {Chen, Jiale and Shabanzadeh, Yalda and Crn{\\v{c}}evi{\\'c}, Elvis and Hoefler, Torsten and Alistarh, Dan},
  journal = {arXiv:2507.18553},
  year = {2025}
}""",
    "gptq-float-target": """@inproceedings{li2025gptaq,
  title = {{GPTAQ}: Efficient Finetuning-Free Quantization for Asymmetric Calibration},
  author = {Li, Yuhang and Yin, Ruokai and Lee, Donghyun and Xiao, Shiting and Panda, Priyadarshini},
  booktitle = {ICML},
  year = {2025},
  note = {arXiv:2504.02692}
}""",
    "gptq-sweeps": """@article{behdin2023quantease,
  title = {{QuantEase}: Optimization-based Quantization for Language Models},
  author = {Behdin, Kayhan and Acharya, Ayan and Gupta, Aman and Song, Qingquan and Zhu, Siyu and Keerthi, Sathiya
    and Mazumder, Rahul},
  journal = {arXiv:2309.01885},
  year = {2023}
}""",
    "obq": """@inproceedings{frantar2022obc,
  title = {Optimal Brain Compression: A Framework for Accurate Post-Training Quantization and Pruning},
  author = {Frantar, Elias and Singh, Sidak Pal and Alistarh, Dan},
  booktitle = {NeurIPS},
  year = {2022},
  note = {arXiv:2208.11580}
}""",
    "adaround": """@inproceedings{nagel2020up,
  title = {Up or Down? Adaptive Rounding for Post-Training Quantization},
  author = {Nagel, Markus and Amjad, Rana Ali and van Baalen, Mart and Louizos, Christos and Blankevoort, Tijmen},
  booktitle = {ICML},
  year = {2020},
  note = {arXiv:2004.10568}
}""",
    "brecq": """@inproceedings{li2021brecq,
  title = {{BRECQ}: Pushing the Limit of Post-Training Quantization by Block Reconstruction},
  author = {Li, Yuhang and Gong, Ruihao and Tan, Xu and Yang, Yang and Hu, Peng and Zhang, Qi and Yu, Fengwei
    and Wang, Wei and Gu, Shi},
  booktitle = {ICLR},
  year = {2021},
  note = {arXiv:2102.05426}
}""",
    "brecq-qdrop": """@inproceedings{wei2022qdrop,
  title = {{QDrop}: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization},
  author = {Wei, Xiuying and Gong, Ruihao and Li, Yuhang and Liu, Xianglong and Yu, Fengwei},
  booktitle = {ICLR},
  year = {2022},
  note = {arXiv:2203.05740}
}""",
    "awq": """@inproceedings{lin2024awq,
  title = {{AWQ}: Activation-aware Weight Quantization for {LLM} Compression and Acceleration},
  author = {Lin, Ji and Tang, Jiaming and Tang, Haotian and Yang, Shang and Chen, Wei-Ming and Wang, Wei-Chen
    and Xiao, Guangxuan and Dang, Xingyu and Gan, Chuang and Han, Song},
  booktitle = {MLSys},
  year = {2024},
  note = {arXiv:2306.00978}
}""",
    "signround": """@article{cheng2023optimize,
  title = {Optimize Weight Rounding via Signed Gradient Descent for the Quantization of {LLMs}},
  author = {Cheng, Wenhua and Zhang, Weiwei and Shen, Haihao and Cai, Yiyang and He, Xin and Lv, Kaokao and Liu, Yi},
  journal = {arXiv:2309.05516},
  year = {2023}
}""",
    "hqq": """@misc{badri2023hqq,
  title = {Half-Quadratic Quantization of Large Machine Learning Models},
  author = {Badri, Hicham and Shaji, Appu},
  howpublished = {Mobius Labs},
  year = {2023}
}""",
    "wall": """@article{tseng2025yaqa,
  title = {Model-Preserving Adaptive Rounding},
  author = {Tseng, Albert and Sun, Zhaofeng and De Sa, Christopher},
  journal = {arXiv:2505.22988},
  year = {2025},
  note = {the end-to-end Hessian at the float point}
}""",
    "ste": """@article{bengio2013estimating,
  title = {Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation},
  author = {Bengio, Yoshua and L{\\'e}onard, Nicholas and Courville, Aaron},
  journal = {arXiv:1308.3432},
  year = {2013}
}""",
    "lsq": """@inproceedings{esser2020lsq,
  title = {Learned Step Size Quantization},
  author = {Esser, Steven K. and McKinstry, Jeffrey L. and Bablani, Deepika and Appuswamy, Rathinakumar
    and Modha, Dharmendra S.},
  booktitle = {ICLR},
  year = {2020},
  note = {arXiv:1902.08153}
}""",
    "parq": """@article{jin2025parq,
  title = {{PARQ}: Piecewise-Affine Regularized Quantization},
  author = {Jin, Lisa and Ma, Jianzhu and Liu, Zechun and Gromov, Andrey and Defazio, Aaron and Xiao, Lin},
  journal = {arXiv:2503.15748},
  year = {2025}
}""",
    "binaryrelax": """@article{yin2018binaryrelax,
  title = {{BinaryRelax}: A Relaxation Approach for Training Deep Neural Networks with Quantized Weights},
  author = {Yin, Penghang and Zhang, Shuai and Lyu, Jiancheng and Osher, Stanley and Qi, Yingyong and Xin, Jack},
  journal = {arXiv:1801.06313},
  year = {2018}
}""",
    "ewgs": """@inproceedings{lee2021ewgs,
  title = {Network Quantization with Element-wise Gradient Scaling},
  author = {Lee, Junghyup and Kim, Dohyung and Ham, Bumsub},
  booktitle = {CVPR},
  year = {2021},
  note = {arXiv:2104.00903}
}""",
    "elastic": """@article{liu2025paretoq,
  title = {{ParetoQ}: Scaling Laws in Extremely Low-bit {LLM} Quantization},
  author = {Liu, Zechun and Zhao, Changsheng and Huang, Hanxian and Chen, Sijia and Zhang, Jing and Zhao, Jiawei
    and Roy, Scott and Jin, Lisa and Xiong, Yunyang and Shi, Yangyang and others},
  journal = {arXiv:2502.02631},
  year = {2025}
}""",
    "oscillation": """@inproceedings{nagel2022overcoming,
  title = {Overcoming Oscillations in Quantization-Aware Training},
  author = {Nagel, Markus and Fournarakis, Marios and Bondarenko, Yelysei and Blankevoort, Tijmen},
  booktitle = {ICML},
  year = {2022},
  note = {arXiv:2203.11086}
}""",
    "nf4": """@inproceedings{dettmers2023qlora,
  title = {{QLoRA}: Efficient Finetuning of Quantized {LLMs}},
  author = {Dettmers, Tim and Pagnoni, Artidoro and Holtzman, Ari and Zettlemoyer, Luke},
  booktitle = {NeurIPS},
  year = {2023},
  note = {arXiv:2305.14314}
}""",
    "mxfp4": """@techreport{ocp2023mx,
  title = {{OCP} Microscaling Formats ({MX}) Specification, version 1.0},
  institution = {Open Compute Project},
  year = {2023}
}""",
    "nvfp4": """@misc{nvidia2025nvfp4,
  title = {Pretraining Large Language Models with {NVFP4}},
  author = {{NVIDIA}},
  note = {E2M1 with one E4M3 scale per 16 values and one float32 scale per tensor},
  year = {2025}
}""",
    "ternary": """@article{li2016twn,
  title = {Ternary Weight Networks},
  author = {Li, Fengfu and Liu, Bin and Wang, Xiaoxing and Zhang, Bo and Yan, Junchi},
  journal = {arXiv:1605.04711},
  year = {2016}
}""",
    "lsbq": """@article{pouransari2020least,
  title = {Least Squares Binary Quantization of Neural Networks},
  author = {Pouransari, Hadi and Tu, Zhucheng and Tuzel, Oncel},
  journal = {arXiv:2001.02786},
  year = {2020}
}""",
    "tune": """@inproceedings{chen2025efficientqat,
  title = {{EfficientQAT}: Efficient Quantization-Aware Training for Large Language Models},
  author = {Chen, Mengzhao and Shao, Wenqi and Xu, Peng and Wang, Jiahao and Gao, Peng and Zhang, Kaipeng
    and Luo, Ping},
  booktitle = {ACL},
  year = {2025},
  note = {arXiv:2407.11062}
}""",
}


SHARED = {
    "clipped": "ste",
    "burst": "ste",
    "threshold": "ternary",
    "greedy": "lsbq",
    "freeze": "oscillation",
    "dampen": "oscillation",
    "qdrop": "brecq-qdrop",
    "babai": "gptq-babai",
}
"""Names whose source is that of another."""


def citations(*used: str) -> str:
    """Entries for Thalweg, the theory, and the named methods, quantizers, estimators and schemes.

    A word counts by its beginning: ``"gptq"`` and ``"gptq-babai"`` both come with ``gptq``, ``"nf4g64"`` is ``nf4``.
    """
    keys = ["thalweg", "theory"]
    for word in used:
        word = word.replace("qat:", "")
        word = SHARED.get(word, word)
        keys += [key for key in ENTRIES if (word.startswith(key) or key.startswith(f"{word}-")) and key not in keys]
    return "\n\n".join(ENTRIES[key] for key in keys)
