"""The file of a study: YAML, and the profile that changes it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import ThalwegError, unknown
from .spec import Study, parse


def read_study(path: str | Path, profile: str = "") -> Study:
    """Read a YAML file and apply a profile.

    Raises:
        ThalwegError: no such file, not YAML, unknown keys, names or profiles, arms that lean on missing arms.
    """
    found = _load(Path(path))
    if not isinstance(found, dict):
        raise ThalwegError(f"The study {path} holds no keys. Start with name, tasks, schemes, seeds and arms.")
    profiles = found.pop("profiles", {}) or {}
    if profile:
        if profile not in profiles:
            raise unknown("profile", profile, profiles)
        changes = dict(profiles[profile] or {})
        found = merged(_kept(found, changes.pop("keep", None) or {}), changes)
    if isinstance(found.get("claims"), str):
        found["claims"] = _load(Path(path).parent / found["claims"])
    return parse({"name": Path(path).stem, **found}, profile)


def _load(path: Path) -> Any:
    """The values of a YAML file."""
    try:
        import yaml
    except ImportError:
        raise ThalwegError("Studies are YAML files, and PyYAML is missing. Run `pip install thalweg[study]`.") from None
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ThalwegError(f"Cannot read the study {path}: {error.strerror or error}. Check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = str(getattr(error, "problem_mark", "") or error).strip().splitlines()[-1].strip()
        raise ThalwegError(f"The study {path} is not YAML ({where}). Correct it there.") from None


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``: mappings key by key, everything else replaced; null takes a key away."""
    out = dict(base)
    for key, value in changes.items():
        if value is None:
            out.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = merged(out[key], value)
        else:
            out[key] = value
    return out


def _kept(found: Mapping[str, Any], names: Mapping[str, Collection[str]]) -> dict[str, Any]:
    """A study with some of its arms and measures only."""
    if not isinstance(names, Mapping) or not all(isinstance(kept, list) for kept in names.values()):
        raise ThalwegError(
            f"A profile cannot keep {names!r}. Write keep: {{arms: [NAME, ...], measures: [NAME, ...]}}."
        )
    out = dict(found)
    for part, kept in names.items():
        if part not in ("arms", "measures"):
            raise unknown("part to keep", part, ("arms", "measures"))
        held = found.get(part) or {}
        for name in kept:
            if name not in held:
                raise unknown(f"name in keep: {part}", str(name), held)
        out[part] = {name: value for name, value in held.items() if name in kept}
    return out
