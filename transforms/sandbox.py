"""Jinja's sandbox as chat templates expect it, set up as transformers sets it up.

No code but the template's own is run, it can change nothing of what it is given, and a
`Meter` bounds what it may use up. For that a template is changed before it is compiled:
what it loops over, hands to filters, joins or writes goes through the meter first. That
also keeps all of this from being worked out while it is compiled.
"""

import functools
import json
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
from jinja2 import ext, meta, nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.nodes import EvalContext
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from transforms.meter import MAX_CHARS, LimitError, Meter

BEGIN, END = "generation_begins", "generation_ends"
"""Variables that hold the marks around `{% generation %}` blocks."""

METER = "the meter"
"""Variable that holds a rendering's meter: no template can spell it."""

_TAKE, _WRITE = "the meter takes", "the meter writes"  # filters, likewise
_UNFIT = ("random", "pprint")
"""Filters whose result is another each time, or far larger than what it is of."""


def compiled(text: str) -> jinja2.Template:
    """Compiles a template.

    Raises:
      ValueError: if it is none; says why.
    """
    try:
        return environment().from_string(text)
    except (TemplateError, RecursionError, SyntaxError) as error:
        raise ValueError(f"must be a Jinja template, it is not: {error}") from error


def strings(text: str) -> tuple[str, ...]:
    """Lists the strings in a template's expressions."""
    found = environment().parse(text).find_all(nodes.Const)
    return tuple({c.value: None for c in found if isinstance(c.value, str)})


def variables(text: str) -> set[str]:
    """Names the variables that a template does not set itself."""
    return meta.find_undeclared_variables(_metered(environment().parse(text)))


@functools.lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """Returns what templates are compiled in."""
    made = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, ext.loopcontrols],
    )
    made.filters["tojson"] = _to_json
    del made.globals["lipsum"]  # another text each time
    for name in _UNFIT:
        del made.filters[name]
    for name, function in made.filters.items():
        made.filters[name] = _bounded(name, function)
    made.filters |= {_TAKE: _take, _WRITE: _write}
    made.globals["raise_exception"] = _refuse
    made.globals["namespace"] = _Namespace
    return made


class _Generation(ext.Extension):
    """`{% generation %}`: writes marks around what it holds."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Any) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (
            nodes.Output([nodes.Name(name, "load")], lineno=line)
            for name in (BEGIN, END)
        )
        return [begin, nodes.Scope(body, lineno=line), end]


class _Namespace(Namespace):
    """`namespace()` of templates: nothing of Python's own can be set on it."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace's names must not begin with _: {name!r}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:  # Jinja's writes out all that it holds
        return "<Namespace>"


class _Metered(CodeGenerator):
    """Compiles a template so that the meter sees what it reads and writes."""

    def visit_Template(self, node: nodes.Template, frame: Any = None) -> None:  # noqa: N802, Jinja's name
        super().visit_Template(_metered(node), frame)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with a meter before calls and operators."""

    code_generator_class = _Metered
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def call(
        __self,  # noqa: N805, as in Jinja: arguments may have any name
        __context: Context,
        __obj: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Calls what a template calls."""
        meter = _meter(__context)
        args = tuple(map(meter.take, args))
        bound = getattr(__obj, "__wrapped__", __obj)  # as Jinja wraps str.format
        subject = getattr(bound, "__self__", None)
        if isinstance(subject, str | bytes):
            meter.check_call(bound.__name__, subject, [*args, *kwargs.values()])
        return meter.take(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Works out `left operator right`."""
        _meter(context).check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)


def _metered(tree: nodes.Template) -> nodes.Template:
    """Puts the meter before what a template loops over, filters, joins and writes."""
    # Lists: a search must not go on in what it has put there.
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = _through(_TAKE, loop.iter)
    for one in list(tree.find_all(nodes.Filter)):
        if one.name in (_TAKE, _WRITE):
            continue
        one.args = [_through(_TAKE, given) for given in one.args]
        if one.node is not None:  # as in {% filter %}
            one.node = _through(_TAKE, one.node)
    for joined in list(tree.find_all(nodes.Concat)):
        joined.nodes = [_through(_TAKE, part) for part in joined.nodes]
    for output in list(tree.find_all(nodes.Output)):
        output.nodes = [_through(_WRITE, part) for part in output.nodes]
    return tree


def _through(name: str, node: nodes.Node) -> nodes.Filter:
    """Sends an expression, or bare text, through a filter."""
    if isinstance(node, nodes.TemplateData):
        node = nodes.Const(node.data, lineno=node.lineno)
    assert isinstance(node, nodes.Expr)
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _meter(context: Context) -> Meter:
    found = context.resolve(METER)
    assert isinstance(found, Meter)
    return found


@jinja2.pass_context
def _take(context: Context, value: Any) -> Any:
    return _meter(context).take(value)


@jinja2.pass_context
def _write(context: Context, value: Any) -> Any:
    return _meter(context).write(value)


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a filter that checks what it is about to make."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        own = [one for one in args if not isinstance(one, _JINJAS)]
        Meter().check_call(name, own[0] if own else None, [*own[1:], *kwargs.values()])
        return function(*args, **kwargs)

    return run


_JINJAS = (Context, EvalContext, jinja2.Environment)
"""What filters may be handed first by Jinja itself."""


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Writes JSON as it is, where Jinja's own filter would escape it for HTML."""
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    return "".join(_at_most(encoder.iterencode(value)))


def _at_most(parts: Iterable[str]) -> Iterable[str]:
    size = 0
    for part in parts:
        size += len(part)
        if size > MAX_CHARS:
            raise LimitError(f"must write JSON of at most {MAX_CHARS:,} characters")
        yield part
