"""The sandbox of ``transformers``, in which a chat template works on strings that keep their origin.

Everything a template can do to text goes through one of five doors: output and ``~`` (``concat``), filters, calls of
string methods, the ``%`` operator, and printing of lists. Each is replaced by one that keeps origins. Where a
change cannot be followed character by character, the whole result belongs to the first owner among what went in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, cast

from sft_mask.traced import SafeTraced, Traced, owned, runs_of, traced_join

if TYPE_CHECKING:
    from jinja2 import Environment, Template


def _tracing_filter(plain: Callable[..., Any]) -> Callable[..., Any]:
    first = 1 if hasattr(plain, "jinja_pass_arg") else 0  # the environment or context that Jinja passes in front

    @wraps(plain)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        return owned(plain(*args, **kwargs), *args[first:], kwargs)

    return filtered


def _lifted(text: str) -> Traced:
    return text if isinstance(text, Traced) else Traced(text, runs_of(text))


def _replace_filter(value: object, old: str, new: str, count: int = -1) -> str:
    return _lifted(value if isinstance(value, str) else str(value)).replace(str(old), str(new), count)


def _joining_filter(environment: Environment) -> Callable[..., str]:
    from jinja2.filters import make_attrgetter

    def join(value: Any, d: str = "", attribute: str | int | None = None) -> str:
        items = value if attribute is None else map(make_attrgetter(environment, attribute), value)
        return _lifted(str(d)).join(items)

    return join


def _safe_filter(value: object) -> SafeTraced:
    text = value if isinstance(value, str) else str(value)
    return SafeTraced(str.__str__(text), runs_of(text))


def _finalize(value: Any) -> Any:
    """What is about to be printed: the words inside a list or a mapping keep their owner."""
    return owned(str(value), value) if isinstance(value, (list, tuple, dict)) else value


def _tracing_call(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Calls from a template; a method of a plain string that is given traced text works on a traced string."""

    def call(context: Any, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        receiver = getattr(getattr(called, "__wrapped__", called), "__self__", None)  # the sandbox wraps ``format``
        if type(receiver) is str and called.__name__ in ("join", "replace"):
            called = getattr(_lifted(receiver), called.__name__)
        result = plain(context, called, *args, **kwargs)
        if isinstance(receiver, str):
            return owned(result, receiver, args, kwargs)
        return result

    return call


def _percent(left: Any, right: Any) -> Any:
    return owned(left % right, left, right)


@lru_cache(maxsize=64)
def traced_template(source: str) -> Template:
    """Compiles a template in the sandbox of ``transformers``, with every door replaced.

    Raises:
        jinja2.TemplateError: it does not compile.
    """
    from jinja2.compiler import CodeGenerator
    from transformers.utils.chat_template_utils import _compile_jinja_template

    class TracingCode(CodeGenerator):
        def visit_Concat(self, node: Any, frame: Any) -> None:  # noqa: N802 - Jinja's name
            self.write("environment.concat((")
            for child in node.nodes:
                self.write("str(environment.finalize(")
                self.visit(child, frame)
                self.write(")), ")
            self.write("))")

    environment = _compile_jinja_template(source).environment.overlay()
    environment.code_generator_class = TracingCode
    environment.concat = traced_join
    environment.finalize = _finalize
    environment.call = _tracing_call(environment.call)
    environment.intercepted_binops = frozenset("%")
    environment.binop_table = {**environment.binop_table, "%": _percent}
    environment.filters = {
        **{name: _tracing_filter(plain) for name, plain in environment.filters.items()},
        "replace": _replace_filter,
        "join": _joining_filter(environment),
        "safe": _safe_filter,
    }
    return cast("Template", environment.from_string(source))
