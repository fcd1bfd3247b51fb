"""The theory as runnable truth: landscapes, bounds, counterexamples and phase diagrams."""
