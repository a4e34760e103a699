"""The compiler: an operation becomes a Python function that answers it.

graphql-core walks an operation anew each time: it collects fields, merges them, looks up types, and asks of each value
what it is. All of this but the values is known beforehand. So the compiler walks once and writes a function, as text,
that does what is left: call resolvers, read attributes, check each value, build the answer. For

    query ($id: ID!) { task(taskId: $id) { status progress } }

it writes, in essence (``Compiled.source`` has the whole of it)::

    def step_1(run, later, result_1):
        result_1["task"] = None
        awaited = resolve_task_2(info=Info(...), task_id=run.variables["id"])
        later.append((awaited, done_task_2, result_1, "task", path_2))

    def done_task_2(run, later, task_2, path):
        if task_2 is not None:
            if type(task_2) not in sound: check(task_2)
            status_3 = task_2.status
            status_3 = names_3[status_3] if type(status_3) is enum_3 else leaf_3(status_3)
            progress_4 = task_2.progress
            if type(progress_4) is not int or not MIN <= progress_4 <= MAX: progress_4 = leaf_4(progress_4)
            task_2 = {"status": status_3, "progress": progress_4}
        return task_2

**Only success is compiled.** Whatever is not as it should be (a resolver raises, a null where there can be none, a
value that does not fit its type) raises an exception out of the function, and ``executor.py`` has graphql-core run the
operation again. Errors are thus graphql-core's own, and so are their paths, their order and what becomes null. For that
second run, what may be costly or have side effects is written down in ``run.log`` as it happens: the outcome of each
root resolver, and of each that is asynchronous or takes information or arguments. Those are not called twice.

**A subscription** begins by a function of its own, ``begin``, which calls the resolver; what that raises is the one
error there can be, and is given its place here. Each event is then a step, with the event as the root.

**Waiting.** A function never waits. What must be awaited goes into ``later`` with the function that completes it, and
a None keeps its place in the answer. A query is one step; each root field of a mutation is a step of its own, and the
executor begins it when nothing of the step before is left to be awaited.

**What is selected** is a tree (``selection.py``). This file writes what it means, and ``arguments.py`` what resolvers
are given. @skip and @include are decided by the compiler: there is one function for each combination of the variables
that they name. What cannot be compiled (introspection, interfaces and unions, other directives) is declined, in whole.

Names in the source are the schema's, or names of the document, which its parser has checked; everything else is a
constant of the namespace. Nothing is taken from the schema but its fields and types, so a new one needs no word here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from inspect import iscoroutine
from typing import Any, Final, NoReturn

from graphql import (
    FieldNode,
    GraphQLBoolean,
    GraphQLEnumType,
    GraphQLFloat,
    GraphQLID,
    GraphQLInt,
    GraphQLOutputType,
    GraphQLString,
    InlineFragmentNode,
    OperationType,
    Undefined,
    VariableNode,
    is_leaf_type,
    is_list_type,
    is_non_null_type,
    located_error,
)
from graphql.execution.execute import assert_event_stream
from graphql.execution.executor import Executor as CoreExecutor
from graphql.execution.values import get_argument_values
from graphql.pyutils import Path, is_awaitable
from strawberry.types.fields.resolver import StrawberryResolver

from graphql_api.execution.arguments import Arguments
from graphql_api.execution.selection import Declined, Flags, Kind, Selected, Selection


class Irregular(Exception):
    """Something is not as it should be; graphql-core will say what."""


class Outcome(Enum):
    """What became of a resolver that was called."""

    RETURNED = auto()
    RAISED = auto()
    # It was to be awaited, and then returned or raised.
    AWAITED = auto()
    FAILED = auto()
    # It is to be awaited, and nobody has begun to.
    PENDING = auto()


@dataclass(frozen=True, slots=True)
class Compiled:
    """An operation as Python."""

    # What was compiled, for whoever wants to read it.
    source: str
    # Run in this order, each when nothing of the one before is left to be awaited. Each writes its root fields.
    steps: tuple[Callable[[Any, list[Any], dict[str, Any]], None], ...]
    # What begins a subscription: its resolver, called. None when graphql-core is to call it.
    begin: Callable[[Any], Any] | None


class Compiler:
    """Compiles one operation, for each combination of flags that is asked for."""

    def __init__(self, template: CoreExecutor[Any]) -> None:
        """The template is an executor of graphql-core for the operation; it is asked what resolvers are told."""
        self._template = template
        self._schema = template.schema
        self._operation = template.operation
        self._strawberry = getattr(self._schema, "_strawberry_schema", None)
        self._definitions = {node.variable.name.value: node for node in template.operation.variable_definitions or ()}
        self.flags: Final = self._flags()
        """The variables that @skip and @include name, in a fixed order."""
        # Declines what any combination would, so that the choice is made once.
        root_fields = self._select_operation(None)
        self.immediate: Final = not any(child.called or child.live for child in root_fields)
        """Whether there is nothing that may have to be awaited: no resolver with more than its value is selected."""

    def compile(self, flags: Flags) -> Compiled:
        """The operation as Python, with the fields that these flags leave."""
        writer = _Writer(self._template, self._strawberry, self._definitions)
        root_fields = self._select_operation(flags)
        serial = self._operation.operation is OperationType.MUTATION
        for step in [[root_field] for root_field in root_fields] if serial else [root_fields]:
            writer.step(step)
        if self._operation.operation is OperationType.SUBSCRIPTION:
            (root_field,) = root_fields
            assert root_field.definition is not None
            if Selection(self._template, self._strawberry, flags).begins_directly(root_field.definition):
                writer.begin(root_field)
        return writer.compiled()

    def _flags(self) -> tuple[str, ...]:
        names: dict[str, None] = {}
        sets = [self._operation.selection_set, *(f.selection_set for f in self._template.fragment_definitions.values())]
        while sets:
            for node in sets.pop().selections:
                for directive in node.directives or ():
                    for argument in directive.arguments or ():
                        if isinstance(argument.value, VariableNode):
                            names[argument.value.name.value] = None
                if isinstance(node, FieldNode | InlineFragmentNode) and node.selection_set:
                    sets.append(node.selection_set)
        return tuple(name for name in names if name in self._definitions)

    def _select_operation(self, flags: Flags | None) -> list[Selected]:
        root_type = self._schema.get_root_type(self._operation.operation)
        if root_type is None or root_type.is_type_of:
            raise Declined("The schema has no such operation.")
        if self._operation.directives:
            raise Declined("Directives on operations.")
        selection = Selection(self._template, self._strawberry, flags)
        root_fields = selection.fields(root_type, [self._operation.selection_set], root=True)
        if self._operation.operation is OperationType.SUBSCRIPTION and len(root_fields) != 1:
            raise Declined("A subscription without its one field.")
        return root_fields


# Types whose values are nothing special: not null, no exception, not to be awaited. They are learned from values.
_sound: Final[set[type]] = {str, int, float, bool, list, tuple, dict}
_SOUND_MAX: Final = 10_000


def _check(value: Any) -> None:
    """Raise Irregular for null, an exception, or what must be awaited."""
    if value is None or value is Undefined or isinstance(value, Exception) or is_awaitable(value):
        raise Irregular
    if not isinstance(value, type) and len(_sound) < _SOUND_MAX:
        _sound.add(type(value))


def _items(value: Any) -> Any:
    # What can be iterated only once must not be begun: graphql-core may have to.
    if isinstance(value, list | tuple) and not is_awaitable(value) and not hasattr(value, "__aiter__"):
        return value
    raise Irregular


def _irregular(*_: Any) -> NoReturn:
    raise Irregular


def _discard(value: Any) -> NoReturn:
    """Forget what was to be awaited. The resolver that gave it is pure, and graphql-core calls it again."""
    if iscoroutine(value):
        value.close()
    raise Irregular


_COMMON: Final[dict[str, Any]] = {
    "Path": Path,
    "new": tuple.__new__,
    "sound": _sound,
    "check": _check,
    "items": _items,
    "irregular": _irregular,
    "discard": _discard,
    "awaitable": is_awaitable,
    "Undefined": Undefined,
    **Outcome.__members__,
}

# What a value of a built-in scalar must not be, in order to be anything but itself in the answer.
_BUILT_IN: Final[dict[Any, str]] = {
    GraphQLString: "type({0}) is not str",
    GraphQLID: "type({0}) is not str",
    GraphQLInt: "type({0}) is not int or not -2147483648 <= {0} <= 2147483647",
    GraphQLFloat: "type({0}) is not float or not -1.7976931348623157e308 <= {0} <= 1.7976931348623157e308",
    GraphQLBoolean: "{0} is not True and {0} is not False",
}


class _Writer:
    """Writes the source and fills the namespace that it runs in."""

    def __init__(self, template: CoreExecutor[Any], strawberry: Any, definitions: Mapping[str, Any]) -> None:
        self._template = template
        self._strawberry = strawberry
        self._definitions = definitions
        self._namespace: dict[str, Any] = dict(_COMMON)
        self._functions: list[str] = []
        self._steps: list[str] = []
        self._begin: str | None = None
        self._number = 0

    def compiled(self) -> Compiled:
        source = "\n\n".join(self._functions) + "\n"
        try:
            exec(compile(source, "<operation>", "exec"), self._namespace)  # noqa: S102 - names and constants of ours
        except (SyntaxError, RecursionError) as error:
            # Python nests loops twenty deep.
            raise Declined(f"Python does not take it: {error}") from error
        begin = None if self._begin is None else self._namespace[self._begin]
        return Compiled(source, tuple(self._namespace[name] for name in self._steps), begin)

    def step(self, root_fields: Sequence[Selected]) -> None:
        """Write the function for root fields that may run concurrently."""
        self._number += 1
        name, result = f"step_{self._number}", f"result_{self._number}"
        self._steps.append(name)
        lines = [f"def {name}(run, later, {result}):"]
        self._fields(lines, 1, root_fields, "run.root", result, "None")
        self._functions.append("\n".join(lines if len(lines) > 1 else [*lines, "    pass"]))

    def begin(self, root_field: Selected) -> None:
        """Write the function that begins a subscription. It says itself what went wrong: that is one error."""
        self._begin = "begin"
        local = self._local(root_field)
        path = Path(None, root_field.key, root_field.parent.name)

        def located(error: Exception) -> Exception:
            return located_error(error, root_field.nodes, path.as_list())

        async def awaited(found: Any) -> Any:
            try:
                return assert_event_stream(await found)
            except Exception as error:
                raise located(error) from error

        self._namespace |= {
            "Irregular": Irregular,
            "located": located,
            "awaited": awaited,
            "stream": assert_event_stream,
        }
        lines = ["def begin(run):"]
        _add(lines, 1, "try:")
        call = self._direct(lines, 2, root_field, local, "run.root", self._constant(f"path_{local}", path))
        _add(lines, 2, f"{local} = {call}")
        _add(lines, 2, f"return awaited({local}) if awaitable({local}) else stream({local})")
        _add(lines, 1, "except Irregular:")
        _add(lines, 2, "raise")
        _add(lines, 1, "except Exception as error:")
        _add(lines, 2, "raise located(error) from error")
        self._functions.append("\n".join(lines))

    def _constant(self, name: str, value: Any) -> str:
        assert name not in self._namespace
        self._namespace[name] = value
        return name

    def _fields(
        self, lines: list[str], depth: int, fields: Sequence[Selected], value: str, result: str, path: str
    ) -> None:
        """Write fields of a value into a result one by one, so that those to be awaited keep their place."""
        for selected in fields:
            if selected.called:
                self._call(lines, depth, selected, value, result, path)
            else:
                completed = self._read(lines, depth, selected, value, path)
                _add(lines, depth, f"{result}[{selected.key!r}] = {completed}")

    def _read(self, lines: list[str], depth: int, selected: Selected, value: str, path: str) -> str:
        """Write a field that is not called; the answer is an expression."""
        if selected.kind is Kind.TYPENAME:
            return repr(selected.parent.name)
        assert selected.definition is not None
        local = self._local(selected)
        if selected.kind is Kind.EVENT:
            _add(lines, depth, f"{local} = {value}")
        elif selected.kind is Kind.PLAIN:
            _add(lines, depth, f"{local} = {value}.{selected.strawberry.python_name}")
        else:
            resolver = selected.strawberry.base_resolver
            assert resolver is not None
            function = self._constant(f"resolve_{local}", resolver.wrapped_func)
            _add(lines, depth, f"{local} = {function}({', '.join(_parent_arguments(resolver, value))})")
            _add(lines, depth, f"if type({local}) not in sound and awaitable({local}): discard({local})")
        below = path
        if selected.live:
            below = f"path_{local}"
            _add(lines, depth, f"{below} = {self._path(selected, path)}")
        return self._complete(lines, depth, selected.definition.type, local, selected, below)

    def _local(self, selected: Selected) -> str:
        self._number += 1
        return f"{selected.name}_{self._number}"

    def _path(self, selected: Selected, path: str) -> str:
        return f"new(Path, ({path}, {selected.key!r}, {selected.parent.name!r}))"

    def _complete(
        self, lines: list[str], depth: int, type_: GraphQLOutputType, local: str, selected: Selected, path: str
    ) -> str:
        """Write what makes a value into what is answered, as ``complete_value`` does; the answer is an expression."""
        if is_non_null_type(type_):
            return self._complete_non_null(lines, depth, type_.of_type, local, selected, path)
        if is_leaf_type(type_) and type_ in _BUILT_IN:
            refused = _BUILT_IN[type_].format(local)
            _add(lines, depth, f"if {local} is not None and ({refused}): {local} = {self._leaf(local, type_)}({local})")
            return local
        _add(lines, depth, f"if {local} is not None:")
        completed = self._complete_non_null(lines, depth + 1, type_, local, selected, path)
        if completed != local:
            _add(lines, depth + 1, f"{local} = {completed}")
        return local

    def _complete_non_null(
        self, lines: list[str], depth: int, type_: Any, local: str, selected: Selected, path: str
    ) -> str:
        if type_ in _BUILT_IN:
            refused = _BUILT_IN[type_].format(local)
            _add(lines, depth, f"if {refused}: {local} = {self._leaf(local, type_)}({local})")
        elif isinstance(type_, GraphQLEnumType):
            self._enum(lines, depth, type_, local)
        elif is_leaf_type(type_):
            serialize = self._constant(f"serialize_{local}", type_.coerce_output_value)
            _add(lines, depth, f"if type({local}) not in sound: check({local})")
            _add(lines, depth, f"{local} = {serialize}({local})")
            _add(lines, depth, f"if type({local}) not in sound: check({local})")
        elif is_list_type(type_):
            return self._list(lines, depth, type_.of_type, local, selected, path)
        else:
            _add(lines, depth, f"if type({local}) not in sound: check({local})")
            return self._object(lines, depth, local, selected, path)
        return local

    def _leaf(self, local: str, type_: Any) -> str:
        """The way for values that are not of the usual Python type."""

        def leaf(value: Any) -> Any:
            _check(value)
            coerced = type_.coerce_output_value(value)
            return _irregular() if coerced is None or coerced is Undefined else coerced

        return self._constant(f"leaf_{local}", leaf)

    def _enum(self, lines: list[str], depth: int, type_: GraphQLEnumType, local: str) -> None:
        leaf = self._leaf(local, type_)
        members = getattr(type_, "wrapped_cls", None)
        if isinstance(members, type) and issubclass(members, Enum) and members.__hash__ is not None:
            try:
                names = {member: type_.coerce_output_value(member) for member in members}
            except Exception:  # noqa: BLE001 - a member that has no name is the slow way's to refuse
                names = {}
            if names:
                known, enum = self._constant(f"names_{local}", names), self._constant(f"enum_{local}", members)
                _add(lines, depth, f"{local} = {known}[{local}] if type({local}) is {enum} else {leaf}({local})")
                return
        _add(lines, depth, f"{local} = {leaf}({local})")

    def _list(self, lines: list[str], depth: int, item_type: Any, local: str, selected: Selected, path: str) -> str:
        self._number += 1
        item, completed_items, below = f"item_{self._number}", f"items_{self._number}", f"path_{self._number}"
        _add(lines, depth, f"if type({local}) is not tuple and type({local}) is not list: {local} = items({local})")
        _add(lines, depth, f"{completed_items} = []")
        if selected.live:
            _add(lines, depth, f"for index_{self._number}, {item} in enumerate({local}):")
            _add(lines, depth + 1, f"{below} = new(Path, ({path}, index_{self._number}, None))")
        else:
            _add(lines, depth, f"for {item} in {local}:")
        completed = self._complete(lines, depth + 1, item_type, item, selected, below)
        _add(lines, depth + 1, f"{completed_items}.append({completed})")
        return completed_items

    def _object(self, lines: list[str], depth: int, local: str, selected: Selected, path: str) -> str:
        if selected.live:
            result = f"result_{local}"
            _add(lines, depth, f"{result} = {{}}")
            self._fields(lines, depth, selected.children, local, result, path)
            return result
        completed = [(child.key, self._read(lines, depth, child, local, path)) for child in selected.children]
        return "{" + ", ".join(f"{key!r}: {expression}" for key, expression in completed) + "}"

    def _call(self, lines: list[str], depth: int, selected: Selected, value: str, result: str, path: str) -> None:
        """Write a field whose resolver is called once, whatever happens."""
        assert selected.definition is not None
        local = self._local(selected)
        if path == "None":
            below = self._constant(f"path_{local}", Path(None, selected.key, selected.parent.name))
        else:
            below = f"path_{local}"
            _add(lines, depth, f"{below} = {self._path(selected, path)}")
        call = (self._direct if selected.kind is Kind.DIRECT else self._wrapped)(
            lines, depth, selected, local, value, below
        )
        done = self._done(selected, local)
        _add(lines, depth, "try:")
        _add(lines, depth + 1, f"{local} = {call}")
        _add(lines, depth, "except Exception as error:")
        _add(lines, depth + 1, f"run.log.append(({below}, error, {'FAILED' if selected.is_async else 'RAISED'}))")
        _add(lines, depth + 1, "raise")
        wait = [
            f"{result}[{selected.key!r}] = None",
            f"later.append(({local}, {done}, {result}, {selected.key!r}, {below}))",
        ]
        if selected.is_async:
            for line in wait:
                _add(lines, depth, line)
            return
        _add(lines, depth, f"if type({local}) not in sound and awaitable({local}):")
        for line in wait:
            _add(lines, depth + 1, line)
        _add(lines, depth, "else:")
        _add(lines, depth + 1, f"run.log.append(({below}, {local}, RETURNED))")
        _add(lines, depth + 1, f"{result}[{selected.key!r}] = {done}(run, later, {local}, {below})")

    def _done(self, selected: Selected, local: str) -> str:
        """Write the function that completes what a resolver gave."""
        assert selected.definition is not None
        name = f"done_{local}"
        lines = [f"def {name}(run, later, {local}, path):"]
        _add(lines, 1, f"return {self._complete(lines, 1, selected.definition.type, local, selected, 'path')}")
        self._functions.append("\n".join(lines))
        return name

    def _wrapped(self, lines: list[str], depth: int, selected: Selected, local: str, value: str, path: str) -> str:
        assert selected.definition is not None
        definition, node = selected.definition, selected.nodes[0]
        resolve = self._constant(f"resolve_{local}", definition.resolve)
        if not definition.args:
            return f"{resolve}({value}, {self._told(selected, local, path)})"
        arguments = self._constant(
            f"arguments_{local}", lambda run: get_argument_values(definition, node, run.variable_values)
        )
        # Before the resolver is tried: an argument that does not fit is no outcome of it.
        _add(lines, depth, f"arguments = {arguments}(run)")
        return f"{resolve}({value}, {self._told(selected, local, path)}, **arguments)"

    def _direct(self, lines: list[str], depth: int, selected: Selected, local: str, value: str, path: str) -> str:
        resolver = selected.strawberry.base_resolver
        assert resolver is not None
        arguments = Arguments(
            selected,
            local,
            constant=self._constant,
            strawberry=self._strawberry,
            definitions=self._definitions,
        )
        if resolver.info_parameter or arguments.need_info:
            info_class = self._constant(f"Info_{local}", self._strawberry.config.info_class)
            strawberry_field = self._constant(f"field_{local}", selected.strawberry)
            told = self._told(selected, local, path)
            _add(lines, depth, f"info = {info_class}({told}, {strawberry_field})")
        for line in arguments.lines:
            _add(lines, depth, line)
        passed = [*_parent_arguments(resolver, value), *arguments.passed]
        if resolver.info_parameter:
            passed.append(f"{resolver.info_parameter.name}=info")
        if arguments.more:
            passed.append("**more")
        return f"{self._constant(f'resolve_{local}', resolver.wrapped_func)}({', '.join(passed)})"

    def _told(self, selected: Selected, local: str, path: str) -> str:
        """What a resolver is told of the operation: all constant but four."""
        assert selected.definition is not None
        example: Any = self._template.build_resolve_info(
            selected.definition, selected.nodes, selected.parent, Path(None, selected.key, selected.parent.name)
        )
        moving = {
            "path": path,
            "root_value": "run.root",
            "variable_values": "run.variables",
            "context": "run.context",
        }
        told_class = self._constant(f"Told_{local}", type(example))
        parts = [
            moving.get(name) or self._constant(f"{name}_of_{local}", part)
            for name, part in zip(example._fields, example, strict=True)
        ]
        return f"new({told_class}, ({', '.join(parts)}))"


def _parent_arguments(resolver: StrawberryResolver[Any], value: str) -> list[str]:
    passed = [value] if resolver.self_parameter else []
    names = {parameter.name for parameter in (resolver.parent_parameter, resolver.root_parameter) if parameter}
    return passed + [f"{name}={value}" for name in sorted(names)]


def _add(lines: list[str], depth: int, line: str) -> None:
    lines.append("    " * depth + line)
