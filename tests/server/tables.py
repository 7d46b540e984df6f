"""The tables of server/README.md, made from the declarations that they describe."""

from __future__ import annotations

from blackbox_server.limits import QUOTAS
from blackbox_server.settings import Settings


def settings_table() -> str:
    """Every setting: its variable, type, default and description."""
    rows = ["| variable | type | default | |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        kind = getattr(field.annotation, "__name__", "str").replace("Union", "str")
        default = "none" if field.default is None else f"`{field.default}`"
        rows.append(f"| `BLACKBOX_{name.upper()}` | {kind} | {default} | {field.description} |")
    return "\n".join(rows)


def quotas_table() -> str:
    """Every quota: its name, for what it is counted, its setting, what it counts, what to do."""
    rows = ["| limit | per | setting | counts | when it is used up |", "|---|---|---|---|---|"]
    for quota in QUOTAS.values():
        variable = f"`BLACKBOX_{quota.setting.upper()}`"
        rows.append(f"| `{quota.name}` | {quota.per} | {variable} | {quota.about} | {quota.hint} |")
    return "\n".join(rows)
