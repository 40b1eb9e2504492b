"""Refuses what `yaml.safe_load` takes silently: aliases, deep nesting, repeated keys; called before it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from shared_model.errors import ConfigError, MammoFedError

if TYPE_CHECKING:
    from yaml.nodes import Node

MAX_DEPTH = 16  # the shipped contract has 5 levels
_OPENING = (yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken, yaml.BlockSequenceStartToken,
            yaml.BlockMappingStartToken)  # fmt: skip
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)


def check_plain(text: str, *, source: str, error: type[MammoFedError] = ConfigError) -> None:
    """Aliases can expand without bound; of repeated keys one hides the other.

    Args:
        source: how the message names the file. error: what is raised.

    Raises:
        error: as above. yaml.YAMLError: the text is no YAML.
    """
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        if isinstance(token, yaml.AliasToken):
            raise error(f"{source} uses a YAML alias (*name)", expected="every value written out")
        if depth > MAX_DEPTH:  # the reader's time grows with the square of the depth
            raise error(f"{source} is nested too deeply", expected=f"at most {MAX_DEPTH} levels")
    pending: list[Node | None] = [yaml.compose(text, Loader=yaml.SafeLoader)]
    while pending:
        node = pending.pop()
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            for key, value in node.value:
                if keys.count(key.value) > 1:
                    raise error(
                        f"{source}: key `{key.value}` stands twice", found=f"line {key.start_mark.line + 1}",
                        remedy="remove one of them",
                    )  # fmt: skip
                pending.append(value)
        elif isinstance(node, yaml.SequenceNode):
            pending.extend(node.value)
