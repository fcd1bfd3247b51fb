"""Thalweg: will this low-bit model survive, why did it die, and what is the cheapest way to bring it back?"""

__version__ = "0.1.0"
