"""Every name of the catalogue has its source, or is said to have none."""

import re

from thalweg import catalog
from thalweg.cite import ENTRIES, SHARED, citations

OURS = {"nearest", "stochastic", "flip", "basic", "absmax", "percentile", "mse", "activation", "moments"}


def test_every_plugin_is_cited_or_ours():
    for folder in ("methods", "quantizers", "estimators"):
        for name in catalog.names(folder):
            assert len(citations(name)) > len(citations()) or name in OURS, name


def test_entries_are_bibtex_with_one_key_each():
    keys = [re.match(r"@\w+\{([\w-]+),", entry) for entry in ENTRIES.values()]
    assert all(keys) and len({k[1] for k in keys if k}) == len(ENTRIES)
    for entry in ENTRIES.values():
        assert entry.count("{") == entry.count("}") and entry.endswith("\n}") and "year = {" in entry
    assert set(SHARED.values()) <= set(ENTRIES)


def test_words_of_schemes_and_runs():
    assert "QLoRA" in citations("nf4g64") and "Microscaling" in citations("mxfp4g32")
    assert "2210.17323" in citations("gptq") and "2507.18553" in citations("gptq")
    assert citations("qat:lsq") == citations("lsq") != citations()
    assert citations("nearest") == citations()


def test_the_table_of_methods_names_all(request):
    text = (request.config.rootpath / "docs" / "methods.md").read_text()
    for folder in ("methods", "quantizers", "estimators"):
        for name in catalog.names(folder):
            assert f"| `{name}`" in text, name
