"""The sandbox of ``transformers``, in which a chat template works on strings that keep their source.

Everything a template can do to text goes through one of five hooks: output and ``~`` (``concat``), filters, calls of
string methods, operators, and printing of lists. Each is replaced by one that keeps sources. Where a change cannot be
followed character by character, the whole result belongs to the first source among what went in.

The same hooks, and one in each loop, apply the limits of :mod:`sft_mask.templates.tracing.limits`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, cast

from sft_mask.templates.tracing.limits import check_bits, check_size, counted, sized, spend_rounds
from sft_mask.templates.tracing.traced_str import SafeTraced, Traced, runs_of, traced_join, with_source

if TYPE_CHECKING:
    from jinja2 import Environment, Template, nodes

_REFUSED_METHODS = frozenset({"encode", "expandtabs", "from_bytes", "to_bytes", "translate"})
"""Methods that give bytes, which have no source, or text of any size. Chat templates do not need them."""

_INSIDE_LOOPS = ("_loop_vars", "_block_vars")
"""Arguments that Jinja adds to each call inside a loop or a block."""


# filters


def _filter(plain: Callable[..., object]) -> Callable[..., object]:
    """A filter that keeps sources; it asks for the context so that Jinja does not evaluate it while it compiles."""
    from jinja2 import pass_context

    first = _first_argument(plain)

    @pass_context
    @wraps(plain)
    def filtered(context: object, value: object, *args: object, **kwargs: object) -> object:
        return sized(with_source(plain(*first(context), value, *args, **kwargs), value, args, kwargs))

    return filtered


def _first_argument(plain: Callable[..., object]) -> Callable[[Any], tuple[object, ...]]:
    """What Jinja passes in front of a filter's value."""
    from jinja2.utils import _PassArg

    wanted = _PassArg.from_obj(plain)
    if wanted is _PassArg.context:
        return lambda context: (context,)
    if wanted is _PassArg.eval_context:
        return lambda context: (context.eval_ctx,)
    if wanted is _PassArg.environment:
        return lambda context: (context.environment,)
    return lambda _: ()


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


def _format_filter(value: str, *args: object, **kwargs: object) -> str:
    return cast("str", _percent(str(value), kwargs or args))


# printing and joining


def _finalize(value: object) -> object:
    """What is about to be printed: the texts inside a list or a mapping keep their source."""
    return with_source(str(value), value) if isinstance(value, (list, tuple, dict)) else value


def _concat(parts: Iterable[str]) -> str:
    """``"".join`` that keeps sources."""
    pieces, size = [], 0
    for piece in parts:
        size += len(piece)
        check_size(size)
        pieces.append(piece)
    return traced_join(pieces)


# calls


def _call(plain: Callable[..., object]) -> Callable[..., object]:
    """Calls from a template; a method of a plain string that is given traced text works on a traced string."""
    from jinja2.runtime import LoopContext

    def call(context: object, called: Any, /, *args: Any, **kwargs: object) -> object:
        spend_rounds()
        if isinstance(called, LoopContext):  # a recursive loop
            args = (counted(args[0]), *args[1:])
        receiver = getattr(getattr(called, "__wrapped__", called), "__self__", None)  # the sandbox wraps ``format``
        if type(receiver) is str and called.__name__ in ("join", "replace"):
            called = getattr(_lifted(receiver), called.__name__)
        result = sized(plain(context, called, *args, **kwargs))
        given = {name: value for name, value in kwargs.items() if name not in _INSIDE_LOOPS}
        return with_source(result, receiver, args, given) if isinstance(receiver, str) else result

    return call


def _safe_attribute(plain: Callable[..., bool]) -> Callable[..., bool]:
    def is_safe(receiver: object, name: str, value: object) -> bool:
        return name not in _REFUSED_METHODS and plain(receiver, name, value)

    return is_safe


def _range(plain: Callable[..., range]) -> Callable[..., range]:
    """``range``, each number of which counts as a round: filters and methods loop over it unseen."""

    def counted_range(*args: int) -> range:
        numbers = plain(*args)
        spend_rounds(len(numbers))
        return numbers

    return counted_range


# operators


def _percent(left: object, right: Any) -> object:
    return sized(with_source(left % right, left, right))


def _plus(left: object, right: Any) -> object:
    return sized(left + right)


def _times(left: object, right: Any) -> object:
    """``left * right``, whose size is checked before it is made."""
    if isinstance(left, int) and isinstance(right, int):
        check_bits(left.bit_length() + right.bit_length())
    else:
        count, repeated = (left, right) if isinstance(left, int) else (right, left)
        if isinstance(count, int) and isinstance(repeated, (str, list, tuple)):
            check_size(count * len(repeated))
    return left * right


def _power(left: object, right: object) -> object:
    """``left ** right``, whose size is checked before it is made."""
    if isinstance(left, int) and isinstance(right, int):
        check_bits(left.bit_length() * right)
    return operator.pow(left, right)


_OPERATORS = {"%": _percent, "+": _plus, "*": _times, "**": _power}


def _code_generator() -> type[object]:
    """Jinja's compiler, with a hook for ``~``, and one that counts the rounds of loops."""
    from jinja2 import nodes
    from jinja2.compiler import CodeGenerator, Frame

    class TracingCode(CodeGenerator):
        def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - Jinja's name
            self.write("environment.concat((")
            for child in node.nodes:
                self.write("str(environment.finalize(")
                self.visit(child, frame)
                self.write(")), ")
            self.write("))")

        def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802 - Jinja's name
            node.iter = nodes.Call(nodes.EnvironmentAttribute("counted"), [node.iter], [], None, None)
            super().visit_For(node, frame)

    return TracingCode


@lru_cache(maxsize=1)
def _environment() -> Any:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment: Any = _compile_jinja_template("").environment.overlay()
    environment.code_generator_class = _code_generator()
    environment.concat = _concat
    environment.finalize = _finalize
    environment.call = _call(environment.call)
    environment.is_safe_attribute = _safe_attribute(environment.is_safe_attribute)
    environment.counted = counted
    environment.intercepted_binops = frozenset(_OPERATORS)
    environment.binop_table = {**environment.binop_table, **_OPERATORS}
    own = {"replace": _replace_filter, "join": _joining_filter(environment), "format": _format_filter}
    filters = {**environment.filters, **own}
    environment.filters = {**{name: _filter(plain) for name, plain in filters.items()}, "safe": _safe_filter}
    environment.globals = {**environment.globals, "range": _range(environment.globals["range"])}
    del environment.globals["lipsum"]  # text of any size
    return environment


@lru_cache(maxsize=64)
def traced_template(source: str) -> Template:
    """Compiles a template in the sandbox of ``transformers``, with every hook replaced.

    Raises:
        jinja2.TemplateError: it does not compile.
    """
    return cast("Template", _environment().from_string(source))


@lru_cache(maxsize=64)
def parsed(source: str) -> tuple[nodes.Template, frozenset[str]]:
    """The syntax tree of a template, and the names that it finds everywhere.

    Raises:
        jinja2.TemplateError: it does not compile.
    """
    environment = _environment()
    return environment.parse(source), frozenset(environment.globals)


def rendered_text(template: Template, variables: Mapping[str, object]) -> str:
    """What a template makes of its variables.

    Raises:
        LimitError: it exceeds a limit.
    """
    return _concat(template.root_render_func(template.new_context(dict(variables))))
