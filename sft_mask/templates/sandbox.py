"""The sandbox of ``transformers``, in which a chat template works on strings that keep their origin.

Everything a template can do to text goes through one of five doors: output and ``~`` (``concat``), filters, calls of
string methods, operators, and printing of lists. Each is replaced by one that keeps origins. Where a
change cannot be followed character by character, the whole result belongs to the first owner among what went in.

At the same doors, and at each round of a loop, a template pays for what it does (:mod:`sft_mask.templates.budget`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, cast

from sft_mask.templates import budget
from sft_mask.templates.traced_str import SafeTraced, Traced, owned, runs_of, traced_join

if TYPE_CHECKING:
    from jinja2 import Environment, Template

_SURFACE = frozenset({"count", "d", "default", "first", "last", "length"})
"""Filters that take a value as it is; all others look at what is inside."""

_UNSIZED_METHODS = frozenset({"encode", "expandtabs", "from_bytes", "to_bytes", "translate"})
_UNSIZED_FILTERS = frozenset({"urlize", "wordwrap", "xmlattr"})
"""What no chat template needs, and could be of any size; ``lipsum`` is another."""

_COMPARING_TESTS = (
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
    ">",
    "gt",
    "greaterthan",
    ">=",
    "ge",
    "in",
)

_STATEMENTS_A_STEP = 16
"""Of the body of a loop, so that a long one costs more."""

_INSIDE_LOOPS = ("_loop_vars", "_block_vars")
"""What Jinja passes along with each call inside of a loop or a block; no argument of the call."""


# filters


def _filter(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that keeps origins and pays; it wants the context, so Jinja does not try it out while it compiles."""
    from jinja2 import pass_context

    first = _first_argument(plain)

    @pass_context
    @wraps(plain)
    def filtered(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if name not in _SURFACE:
            inside = budget.spend_depth(value)
            budget.spend_numbers((*args, *kwargs.values()), inside)
            value = budget.counted(value) if isinstance(value, Iterator) else value
        result = owned(plain(*first(context), value, *args, **kwargs), value, args, kwargs)
        budget.spend_surface(result)
        return result

    return filtered


def _first_argument(plain: Callable[..., Any]) -> Callable[[Any], tuple[Any, ...]]:
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
    text = _lifted(value if isinstance(value, str) else str(value))
    budget.spend_replacing(text, str(old), str(new))
    return text.replace(str(old), str(new), count)


def _joining_filter(environment: Environment) -> Callable[..., str]:
    from jinja2.filters import make_attrgetter

    def join(value: Any, d: str = "", attribute: str | int | None = None) -> str:
        items = value if attribute is None else map(make_attrgetter(environment, attribute), value)
        return _lifted(str(d)).join(budget.spend_joining(str(d), items))

    return join


def _safe_filter(value: object) -> SafeTraced:
    text = value if isinstance(value, str) else str(value)
    return SafeTraced(str.__str__(text), runs_of(text))


def _format_filter(value: str, *args: Any, **kwargs: Any) -> str:
    return cast("str", _percent(str(value), kwargs or args))


def _comparing_test(plain: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(plain)
    def tested(*args: Any, **kwargs: Any) -> Any:
        budget.spend_depth(args[-2:])
        return plain(*args, **kwargs)

    return tested


# printing and joining


def _finalize(value: Any) -> Any:
    """What is about to be printed: the words inside a list or a mapping keep their owner."""
    if isinstance(value, str):
        return value
    budget.spend_depth(value)
    return owned(str(value), value) if isinstance(value, (list, tuple, dict)) else value


def _concat(parts: Iterable[str]) -> str:
    """``"".join`` that keeps origins, of text that is paid for before it is made."""
    pieces = []
    for piece in parts:
        budget.spend_surface(piece)
        pieces.append(piece)
    return traced_join(pieces)


# calls


def _call(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Calls from a template; a method of a plain string that is given traced text works on a traced string."""
    from jinja2.runtime import LoopContext, Macro

    def call(context: Any, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        receiver = getattr(getattr(called, "__wrapped__", called), "__self__", None)  # the sandbox wraps ``format``
        given = {name: value for name, value in kwargs.items() if name not in _INSIDE_LOOPS}
        budget.spend(1 + len(args))
        if isinstance(called, LoopContext):
            args = (budget.counted(args[0]), *args[1:])
        elif not isinstance(called, Macro):
            budget.spend_surface(receiver)
            budget.spend_depth((args, given))
        if isinstance(receiver, str):
            args = _paid_method(receiver, called.__name__, args, given)
        if type(receiver) is str and called.__name__ in ("join", "replace"):
            called = getattr(_lifted(receiver), called.__name__)
        result = plain(context, called, *args, **kwargs)
        if isinstance(receiver, str):
            budget.spend_surface(result)
            return owned(result, receiver, args, given)
        return result

    return call


def _safe_attribute(plain: Callable[..., bool]) -> Callable[..., bool]:
    def is_safe(owner: Any, name: str, value: Any) -> bool:
        return name not in _UNSIZED_METHODS and plain(owner, name, value)

    return is_safe


def _paid_method(receiver: str, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """Pays for a method of a string, and gives its arguments back."""
    if name == "join" and args:
        return (budget.spend_joining(receiver, args[0]), *args[1:])
    if name == "replace" and len(args) > 1:
        budget.spend_replacing(receiver, str(args[0]), str(args[1]))
    elif name in ("format", "format_map"):
        budget.spend_format(receiver, budget.inside_of([args, named]))
    elif name in ("center", "ljust", "rjust", "zfill"):
        budget.spend_numbers((*args, *named.values()))
    return args


# operators


def _percent(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        budget.spend_depth((left, right))
        budget.spend_format(left, budget.inside_of(right))
    return owned(left % right, left, right)


def _plus(left: Any, right: Any) -> Any:
    result = left + right
    budget.spend_surface(result)
    return result


def _times(left: Any, right: Any) -> Any:
    budget.spend_product(left, right)
    return left * right


def _power(left: Any, right: Any) -> Any:
    budget.spend_power(left, right)
    return operator.pow(left, right)


_OPERATORS = {"%": _percent, "+": _plus, "*": _times, "**": _power}


def _looked_at(value: Any) -> Any:
    """A value that is about to be compared, or to be a key."""
    budget.spend_depth(value)
    return value


def _getitem(plain: Callable[..., Any]) -> Callable[..., Any]:
    def getitem(owner: Any, key: Any) -> Any:
        return plain(owner, key if isinstance(key, str) else _looked_at(key))

    return getitem


def _sliced(value: Any) -> Any:
    """A value that is about to be sliced."""
    budget.spend_surface(value)
    return value


def _paying_code() -> type[Any]:
    """Jinja's compiler, which leaves to the environment what would be free of charge: loops, comparisons and slices."""
    from jinja2 import nodes
    from jinja2.compiler import CodeGenerator, operators

    class PayingCode(CodeGenerator):
        def visit_For(self, node: Any, frame: Any) -> None:  # noqa: N802 - Jinja's name
            statements = sum(1 for child in node.body for _ in child.find_all(nodes.Stmt))
            steps = nodes.Const(1 + (len(node.body) + statements) // _STATEMENTS_A_STEP)
            node.iter = nodes.Call(nodes.EnvironmentAttribute("counted"), [node.iter, steps], [], None, None)
            super().visit_For(node, frame)

        def visit_Compare(self, node: Any, frame: Any) -> None:  # noqa: N802 - Jinja's name
            self.write("(")
            self._through("looked_at", node.expr, frame)
            for operand in node.ops:
                self.write(f" {operators[operand.op]} ")
                self._through("looked_at", operand.expr, frame)
            self.write(")")

        def visit_Dict(self, node: Any, frame: Any) -> None:  # noqa: N802 - Jinja's name
            self.write("{")
            for pair in node.items:
                self._through("looked_at", pair.key, frame)
                self.write(": ")
                self.visit(pair.value, frame)
                self.write(", ")
            self.write("}")

        def visit_Getitem(self, node: Any, frame: Any) -> None:  # noqa: N802 - Jinja's name
            if not isinstance(node.arg, nodes.Slice):
                super().visit_Getitem(node, frame)
                return
            self._through("sliced", node.node, frame)
            self.write("[")
            self.visit(node.arg, frame)
            self.write("]")

        def _through(self, door: str, node: Any, frame: Any) -> None:
            self.write(f"environment.{door}(")
            self.visit(node, frame)
            self.write(")")

    return PayingCode


def _tracing_code(base: type[Any]) -> type[Any]:
    class TracingCode(base):  # type: ignore[misc] # Jinja's compiler is imported when it is needed
        def visit_Concat(self, node: Any, frame: Any) -> None:  # noqa: N802 - Jinja's name
            self.write("environment.concat((")
            for child in node.nodes:
                self.write("str(environment.finalize(")
                self.visit(child, frame)
                self.write(")), ")
            self.write("))")

    return TracingCode


@lru_cache(maxsize=1)
def _environment() -> Any:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment: Any = _compile_jinja_template("").environment.overlay()
    environment.code_generator_class = _tracing_code(_paying_code())
    environment.concat = _concat
    environment.finalize = _finalize
    environment.call = _call(environment.call)
    environment.getitem = _getitem(environment.getitem)
    environment.is_safe_attribute = _safe_attribute(environment.is_safe_attribute)
    environment.counted, environment.looked_at, environment.sliced = budget.counted, _looked_at, _sliced
    environment.intercepted_binops = frozenset(_OPERATORS)
    environment.binop_table = {**environment.binop_table, **_OPERATORS}
    own = {"replace": _replace_filter, "join": _joining_filter(environment), "format": _format_filter}
    environment.filters = {
        **{
            name: _filter(name, own.get(name, plain))
            for name, plain in environment.filters.items()
            if name not in _UNSIZED_FILTERS
        },
        "safe": _safe_filter,
    }
    comparing = {name: _comparing_test(environment.tests[name]) for name in _COMPARING_TESTS}
    environment.tests = {**environment.tests, **comparing}
    environment.globals = {name: value for name, value in environment.globals.items() if name != "lipsum"}
    return environment


@lru_cache(maxsize=64)
def traced_template(source: str) -> Template:
    """Compiles a template in the sandbox of ``transformers``, with every door replaced.

    Raises:
        jinja2.TemplateError: it does not compile.
    """
    return cast("Template", _environment().from_string(source))


def rendered_text(template: Template, variables: Mapping[str, Any]) -> str:
    """What a template makes of its variables.

    Raises:
        OverBudgetError: it goes on and on.
    """
    return _concat(template.root_render_func(template.new_context(dict(variables))))
