"""A file's text without what only people read: comments and docstrings say nothing of what the file does."""

from __future__ import annotations

import ast
import re

C_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\')|/\*.*?\*/|//[^\n]*', re.DOTALL)
"""Or, in group 1, a literal, in which a slash begins no comment."""


def without_comments(name: str, text: str) -> str:
    """What is left of it. RecursionError for Python whose expressions nest deeper than Python can write them again."""
    if not name.endswith(".py"):
        return _without_c_comments(text)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return text
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node) is not None
        ):
            del node.body[0]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "__global__" in node.value:
            node.value = _without_c_comments(node.value)
    return "\n".join(ast.unparse(node) for node in tree.body)


def _without_c_comments(text: str) -> str:
    return C_COMMENT.sub(lambda found: found[1] or " ", text)
