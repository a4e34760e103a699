"""Executors: one operation of a document, run compiled where it can be, and by graphql-core where it cannot.

The choice is made once, when the executor is made. A compiled operation that meets anything irregular (see
``compiler.py``) is run again by graphql-core, with Strawberry's execution context: there the outcomes that were written
down are given back instead of calling resolvers a second time, and whatever was not called yet is called now. So the
answer is the one that graphql-core gives, with its errors, and no resolver with an effect runs twice. A subscription
is begun by the compiled operation, too, which says itself what its resolver raised: that is one error in one place.

That rests on values that do not change while the operation lasts: their attributes are read again. The storage's are
frozen.
"""

from asyncio import Task, create_task, wait
from collections.abc import AsyncIterable, Awaitable, Callable, Generator, Mapping
from contextlib import suppress
from inspect import isawaitable, iscoroutine
from typing import Any, Final, cast

from graphql import (
    DocumentNode,
    ExecutionResult,
    FragmentDefinitionNode,
    GraphQLError,
    GraphQLSchema,
    NonNullTypeNode,
    OperationDefinitionNode,
    Undefined,
    default_field_resolver,
    default_type_resolver,
)
from graphql.execution import MiddlewareManager, create_source_event_stream
from graphql.execution.collect_fields import FragmentDetails
from graphql.execution.executor import Executor as CoreExecutor
from graphql.execution.get_variable_signature import get_variable_signature
from graphql.execution.values import VariableValues, VariableValueSource, get_variable_values
from graphql.pyutils import Path
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext

from graphql_api.execution.compiler import Compiled, Compiler, Irregular, Outcome
from graphql_api.execution.selection import Declined
from graphql_api.execution.usual import usual

# Functions that are kept for one operation: each combination of the variables in @skip and @include has its own.
# Beyond, graphql-core runs it.
COMBINATIONS_MAX: Final = 8
# As graphql-core has it by default.
VARIABLE_ERRORS_MAX: Final = 50

_Done = Callable[["_Run", list[Any], Any, Path], Any]
_Waiting = tuple[Awaitable[Any], _Done, dict[str, Any], str, Path]
"""What is to be awaited, what completes it, and where in the answer it goes."""


class VariablesRefused(Exception):
    """The variables do not fit those that the operation declares; nothing was run."""

    def __init__(self, errors: list[GraphQLError]) -> None:
        super().__init__(errors[0].message)
        self.errors = errors


class Variables:
    """Variables that fit. They can be used for as long as a stream lasts."""

    __slots__ = ("coerced", "given")

    def __init__(self, given: Mapping[str, Any], coerced: dict[str, Any]) -> None:
        # As they came, without those that are not declared.
        self.given = given
        self.coerced = coerced


class _Run:
    """What a compiled operation knows of the one time that it is run."""

    __slots__ = ("context", "executor", "given", "log", "root", "variables")

    def __init__(self, executor: "Executor", given: Variables, context: Any, root: Any) -> None:
        self.executor = executor
        self.given = given
        self.variables = given.coerced
        self.context = context
        self.root = root
        self.log: list[tuple[Path, Any, Outcome]] = []

    @property
    def variable_values(self) -> VariableValues:
        """The variables as graphql-core wants them."""
        return self.executor._variable_values(self.given)

    async def settle(self, later: list[_Waiting]) -> None:
        """Await what waits, and what comes to wait by that. One alone needs no task of its own."""
        while later:
            if len(later) > 1:
                await self._settle_all(later)
                return
            ((awaitable, done, result, key, path),) = later
            later = []
            try:
                value = await awaitable
            except Exception as error:
                self.log.append((path, error, Outcome.FAILED))
                raise
            self.log.append((path, value, Outcome.AWAITED))
            try:
                result[key] = done(self, later, value, path)
            except Exception:
                self.leave(later)
                raise

    async def _settle_all(self, later: list[_Waiting]) -> None:
        # Each to its end, also when another fails: their outcomes are needed then, and what they do is done.
        tasks = [create_task(self.settle([waiting])) for waiting in later]
        try:
            await wait(tasks)
        except BaseException:
            await _cancel(tasks)
            for awaitable, *_ in later:
                # One that was canceled before it began has not awaited its coroutine.
                _close(awaitable)
            raise
        failures = [task.exception() for task in tasks if not task.cancelled()]
        if any(task.cancelled() for task in tasks):
            # A resolver was canceled from within; that is no outcome but the end.
            for task in tasks:
                if task.cancelled():
                    await task
        for failure in failures:
            if failure is not None:
                raise failure

    def leave(self, later: list[_Waiting]) -> None:
        """Write down what was never awaited: it is graphql-core's now."""
        self.log.extend((path, awaitable, Outcome.PENDING) for awaitable, _, _, _, path in later)


async def _cancel(tasks: list[Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()


def _close(awaitable: Any) -> None:
    # A future is left alone: others may wait for it.
    if iscoroutine(awaitable):
        awaitable.close()


class Executor:
    """Runs one operation of a document that was validated."""

    def __init__(
        self,
        schema: GraphQLSchema,
        document: DocumentNode,
        operation: OperationDefinitionNode,
        *,
        compiled: bool = True,
    ) -> None:
        self._schema = schema
        self._operation = operation
        self._fragments = {
            node.name.value: node for node in document.definitions if isinstance(node, FragmentDefinitionNode)
        }
        self._details = {name: FragmentDetails(node) for name, node in self._fragments.items()}
        self._coercion = _Coercion(schema, operation)
        self._compiler: Compiler | None = None
        self._functions: dict[tuple[Any, ...], Compiled | None] = {}
        self._source_characters = 0
        self.declined: str | None = "It was not asked for."
        """Why the operation does not run compiled, if so."""
        if compiled:
            try:
                self._compiler = Compiler(self._core(VariableValues({}, {}), None, None))
                self.declined = None
                if not self._compiler.flags:
                    compiled_once = self._functions[()] = self._compiler.compile({})
                    self._source_characters = len(compiled_once.source)
            except Declined as reason:
                self._compiler = None
                self.declined = str(reason)
        self.compiled = self._compiler is not None
        """Whether it runs compiled."""
        self.immediate = self._compiler is not None and self._compiler.immediate
        """Whether executing it with a root value needs no waiting: only plain fields and pure functions of values."""
        self.reruns = 0
        """How often something was irregular, and graphql-core ran it again."""

    def coerce(self, given: Mapping[str, Any] | None) -> Variables:
        """The variables, made what their types say; VariablesRefused when they do not fit."""
        return self._coercion.coerce(given or {})

    def execute(
        self, variables: Variables, context: Any, root_value: Any = None
    ) -> ExecutionResult | Awaitable[ExecutionResult]:
        """Run a query, a mutation, or one event of a subscription; an awaitable only if something had to be awaited."""
        compiled = self._function(variables.coerced)
        if compiled is None:
            return self._run_by_core(variables, context, root_value)
        run = _Run(self, variables, context, root_value)
        data: dict[str, Any] = {}
        later: list[_Waiting] = []
        steps = compiled.steps
        try:
            for number, step in enumerate(steps, 1):
                step(run, later, data)
                if later:
                    return self._finish(run, data, later, steps[number:])
        except Exception:  # noqa: BLE001 - whatever it is, graphql-core will find it too, and say it
            run.leave(later)
            return self._rerun(run)
        return ExecutionResult(data, None)

    async def _finish(
        self, run: _Run, data: dict[str, Any], later: list[_Waiting], steps: tuple[Callable[..., None], ...]
    ) -> ExecutionResult:
        try:
            await run.settle(later)
            for step in steps:
                later = []
                try:
                    step(run, later, data)
                except Exception:
                    run.leave(later)
                    raise
                await run.settle(later)
        except Exception:  # noqa: BLE001 - as above
            result = self._rerun(run)
            return await result if isawaitable(result) else result
        return ExecutionResult(data, None)

    def source(self, variables: Variables, context: Any) -> AsyncIterable[Any] | Awaitable[AsyncIterable[Any]]:
        """What the resolver of a subscription returns; a located GraphQLError when it fails."""
        compiled = self._function(variables.coerced)
        if compiled is not None and compiled.begin is not None:
            with suppress(Irregular):
                begun: AsyncIterable[Any] | Awaitable[AsyncIterable[Any]]
                begun = compiled.begin(_Run(self, variables, context, None))
                return begun
        found = create_source_event_stream(self._core(self._variable_values(variables), context, None))
        if isawaitable(found):
            return _awaited_source(found)
        return _source(found)

    def _function(self, coerced: dict[str, Any]) -> Compiled | None:
        """The function for what the variables in @skip and @include are; None when graphql-core is to run it."""
        compiler = self._compiler
        if compiler is None:
            return None
        if not compiler.flags:
            return self._functions[()]
        key = tuple(map(coerced.get, compiler.flags))
        try:
            return self._functions[key]
        except KeyError:
            pass
        if len(self._functions) >= COMBINATIONS_MAX or not all(isinstance(flag, bool) for flag in key):
            return None
        try:
            compiled = compiler.compile({name: coerced[name] for name in compiler.flags})
        except Declined:
            compiled = None
        self._functions[key] = compiled
        self._source_characters += len(compiled.source) if compiled else 0
        return compiled

    @property
    def source_characters(self) -> int:
        """How much was compiled so far."""
        return self._source_characters

    def sources(self) -> list[str]:
        """What was compiled so far, for whoever wants to read it."""
        return [compiled.source for compiled in self._functions.values() if compiled]

    def _core(
        self,
        variable_values: VariableValues,
        context: Any,
        root_value: Any,
        middleware: MiddlewareManager | None = None,
    ) -> CoreExecutor[Any]:
        """An executor of graphql-core, as its ``execute`` would build it, without coercing variables once more."""
        return StrawberryGraphQLCoreExecutionContext(
            self._schema,
            self._fragments,
            self._details,
            root_value,
            context,
            self._operation,
            variable_values,
            default_field_resolver,
            default_type_resolver,
            default_field_resolver,
            middleware_manager=middleware,
        )

    def _run_by_core(
        self, variables: Variables, context: Any, root_value: Any, middleware: MiddlewareManager | None = None
    ) -> ExecutionResult | Awaitable[ExecutionResult]:
        core = self._core(self._variable_values(variables), context, root_value, middleware)
        return cast("ExecutionResult | Awaitable[ExecutionResult]", core.execute_operation())

    def _rerun(self, run: _Run) -> ExecutionResult | Awaitable[ExecutionResult]:
        self.reruns += 1
        replay = _Replay(run.log)
        result = self._run_by_core(run.given, run.context, run.root, MiddlewareManager(replay))
        if isawaitable(result):
            return replay.close_after(result)
        replay.close()
        return result

    def _variable_values(self, variables: Variables) -> VariableValues:
        return VariableValues(self._coercion.sources(variables.given), variables.coerced)


class _Replay:
    """Gives back what resolvers did, by the place in the answer that they did it for."""

    def __init__(self, log: list[tuple[Path, Any, Outcome]]) -> None:
        self._outcomes = {path: (value, outcome) for path, value, outcome in log}

    def resolve(self, call: Callable[..., Any], source: Any, info: Any, **arguments: Any) -> Any:
        """A middleware of graphql-core."""
        found = self._outcomes.pop(info.path, None)
        if found is None:
            return call(source, info, **arguments)
        value, outcome = found
        if outcome is Outcome.RAISED:
            raise value
        if outcome is Outcome.AWAITED or outcome is Outcome.FAILED:
            # Errors come in the order in which awaitables end, so what was one is one again.
            return _Again(value, failed=outcome is Outcome.FAILED)
        return value

    def close(self) -> None:
        """Close what nobody has come for. It was never begun."""
        for value, outcome in self._outcomes.values():
            if outcome is Outcome.PENDING:
                _close(value)

    async def close_after(self, result: Awaitable[ExecutionResult]) -> ExecutionResult:
        """Await a result, and close."""
        try:
            return await result
        finally:
            self.close()


class _Again:
    """An outcome to be awaited once more. It is no coroutine: graphql-core may cancel who would have awaited it."""

    __slots__ = ("_failed", "_value")

    def __init__(self, value: Any, *, failed: bool) -> None:
        self._value = value
        self._failed = failed

    def __await__(self) -> Generator[None, None, Any]:
        # Nothing to wait for; this makes it a generator.
        yield from ()
        if self._failed:
            raise self._value
        return self._value


def _source(found: Any) -> AsyncIterable[Any]:
    if isinstance(found, ExecutionResult):
        assert found.errors
        raise found.errors[0]
    return cast("AsyncIterable[Any]", found)


async def _awaited_source(found: Awaitable[Any]) -> AsyncIterable[Any]:
    return _source(await found)


class _Coercion:
    """Coerces variables. Values of the usual Python types are taken as they are; graphql-core judges all others."""

    def __init__(self, schema: GraphQLSchema, operation: OperationDefinitionNode) -> None:
        self._schema = schema
        self._nodes = tuple(operation.variable_definitions or ())
        self._signatures: dict[str, Any] = {
            node.variable.name.value: get_variable_signature(schema, node) for node in self._nodes
        }
        self._names = self._signatures.keys()
        self._plain = [
            (
                node.variable.name.value,
                usual(signature.type),
                not isinstance(node.type, NonNullTypeNode),
                node.default_value is not None,
            )
            for node, signature in zip(self._nodes, self._signatures.values(), strict=True)
        ]

    def coerce(self, given: Mapping[str, Any]) -> Variables:
        coerced: dict[str, Any] = {}
        for name, taken, nullable, has_default in self._plain:
            value = given.get(name, Undefined)
            if value is Undefined:
                if has_default or not nullable:
                    return self._coerce_by_core(given)
            elif value is None:
                if not nullable:
                    return self._coerce_by_core(given)
                coerced[name] = None
            else:
                value = taken(value)
                if value is Undefined:
                    return self._coerce_by_core(given)
                coerced[name] = value
        return Variables(self._declared(given), coerced)

    def _declared(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        if given.keys() <= self._names:
            return given
        return {name: value for name, value in given.items() if name in self._names}

    def _coerce_by_core(self, given: Mapping[str, Any]) -> Variables:
        declared = dict(self._declared(given))
        values = get_variable_values(self._schema, self._nodes, declared, max_errors=VARIABLE_ERRORS_MAX)
        if isinstance(values, list):
            raise VariablesRefused(values)
        return Variables(declared, values.coerced)

    def sources(self, given: Mapping[str, Any]) -> dict[str, VariableValueSource]:
        """Where graphql-core looks up how a variable was given."""
        return {
            name: VariableValueSource(signature, given.get(name, Undefined))
            for name, signature in self._signatures.items()
        }
