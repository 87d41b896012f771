"""Worker: one contributor to a session, over one Exchange stream."""

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Literal, TypeVar

from numpy.typing import ArrayLike

from hermosis import hot, wire
from hermosis.coding import Codec
from hermosis.v1 import gradient_pb2, types_pb2
from hermosis_client import codec, cutoff
from hermosis_client.coded import CodedAnswers, CodedGradient, Feedback, Sending, codec_message
from hermosis_client.connection import Connection
from hermosis_client.contribution import Contribution, StepNumbers
from hermosis_client.dtypes import Float32
from hermosis_client.errors import ConnectionFailed, HermosisError, StaleGeneration
from hermosis_client.layout import ParameterLayout, Tensors
from hermosis_client.lineage import goes_on
from hermosis_client.records import AckLevel, Reply, StepResult
from hermosis_client.retry import Patience
from hermosis_client.segment import MIN_PAYLOAD_BYTES, Segment
from hermosis_client.stream import ExchangeStream
from hermosis_client.transfer import HANDLE, Landing, OutgoingGradient, wait_for_opening, wait_for_result

_Answer = TypeVar("_Answer")

_Request = gradient_pb2.ExchangeRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """How one worker takes part."""

    worker_id: str
    gradient_dtype: wire.Dtype
    reply_dtype: wire.Dtype
    reply: Reply
    ack_level: AckLevel = AckLevel.APPLIED
    shared_memory: bool = True
    codec: Codec = field(default_factory=Codec)
    reply_codec: Codec = field(default_factory=Codec)


class Worker:
    """Sends gradients of one session and takes parameters back. Calls of several threads wait for one another.

    Each contribution has a number and is counted once: when the connection breaks while its fate is unknown, the client
    connects again, for at most the client's timeout_s, and sends the same one; the server answers with the recorded
    outcome if it had come through. A refused contribution raises its typed error and changed nothing; the worker stays
    usable.

    Attributes:
      worker_id: numbers the contributions; rounds are summed in the order of worker ids.
      step:      step of the parameters this worker holds, sent with each gradient; None before the first call.
    """

    def __init__(
        self, connection: Connection, session_id: str, layout: ParameterLayout, settings: WorkerSettings
    ) -> None:
        self.worker_id = settings.worker_id
        self.step: int | None = None
        self._connection = connection
        self._session_id = session_id
        self._layout = layout
        self._settings = settings
        self._lock = threading.Lock()
        self._stream: ExchangeStream | None = None
        self._opened_for: Reply | None = None
        self._generation = 0
        self._next_sequence = 1
        self._chunk_bytes = wire.DEFAULT_CHUNK_BYTES
        self._resume_sequence = self._resume_offset = 0  # what the server has of a contribution whose stream broke
        self._begun: Contribution | None = None  # the last one that was
        self._news = threading.Condition(threading.Lock())  # of contributions
        self._proven: ExchangeStream | None = None  # has carried a contribution
        self._closed = False
        elements = layout.parameter_count
        self._feedback = self._coded_answers = None
        if not settings.codec.is_plain:
            self._feedback = Feedback(settings.codec, layout, settings.gradient_dtype, settings.worker_id)
        if not settings.reply_codec.is_plain:
            self._coded_answers = CodedAnswers(settings.reply_codec, elements, settings.reply_dtype)

    def exchange(
        self,
        gradients: Mapping[str, ArrayLike] | Float32,
        *,
        loss: float | None = None,
        sample_count: int = 0,
        lr_scale: float | None = None,
        want_digest: bool = False,
        skipped: Collection[str] = (),
        loss_scale: float | None = None,
        out: Float32 | None = None,
    ) -> tuple[StepResult, Tensors]:
        """Sends one gradient, waits for the step it is part of, and takes the new parameters.

        Args:
          gradients:    arrays by name as in the layout, or the flat vector (P,) itself.
          loss:         at the parameters the gradient was computed at; a polynomial thermal profile needs it.
          sample_count: that the gradient is the mean of; zero means unknown.
          lr_scale:     of this worker's own schedule for this step, which multiplies the session's; None means 1.
          want_digest:  asks for the state digest, which reads the whole optimizer state.
          skipped:      names of tensors that have no gradient in this step: nothing of theirs moves. Of a mapping they
                        are left out, in a flat vector they are zeros.
          loss_scale:   that the loss, and so the gradient, was multiplied by; the server divides by it. None means 1.
          out:          flat float32 vector (P,) to land the answer in; None means a new one.

        Returns:
          The fate of the contribution, and the parameters after the step, at which the next gradient is computed.
          Where increments are asked for they are what the step added (zeros when nothing was applied), for one that
          asks for nothing an empty mapping. A gradient with NaN or infinity changes nothing and is told by
          `StepResult.outcome`.
        """
        numbers = StepNumbers(
            loss=loss,
            sample_count=sample_count,
            lr_scale=lr_scale,
            want_digest=want_digest,
            skipped=self._layout.places(skipped),
            loss_scale=loss_scale,
        )
        return self._contribute(gradients, numbers, self._settings.reply, out)

    def push(
        self,
        gradients: Mapping[str, ArrayLike] | Float32,
        *,
        loss: float | None = None,
        sample_count: int = 0,
        lr_scale: float | None = None,
        want_digest: bool = False,
        skipped: Collection[str] = (),
        loss_scale: float | None = None,
    ) -> StepResult:
        """Sends one gradient and waits for the step, but takes nothing back. Arguments as in `exchange`."""
        numbers = StepNumbers(
            loss=loss,
            sample_count=sample_count,
            lr_scale=lr_scale,
            want_digest=want_digest,
            skipped=self._layout.places(skipped),
            loss_scale=loss_scale,
        )
        return self._contribute(gradients, numbers, Reply.NONE, None)[0]

    def begin(self, gradient: Float32) -> Contribution:
        """Opens a contribution whose gradient is still in the making: what is ready of it is sent meanwhile.

            contribution = worker.begin(gradient)
            gradient[half:] = …
            contribution.ready(half, gradient.size)
            gradient[:half] = …
            contribution.ready(0, half)
            contribution.finish(loss=0.7, out=parameters)
            contribution.wait(first_tensor.size)  # parameters[: first_tensor.size] are there

        Never waits: another thread carries it, after the contributions that were begun before. Every other call of the
        worker waits until it is answered, or abandoned.

        Args:
          gradient: flat vector (P,) that is being filled.
        """
        gradient = self._layout.checked(gradient)
        contribution = Contribution(gradient, self._layout, self._settings.reply, self._news)
        before, self._begun = self._begun, contribution
        threading.Thread(
            target=self._carry_later, args=(contribution, before), name=f"hermosis-{self.worker_id}", daemon=True
        ).start()
        return contribution

    def pull(self, *, out: Float32 | None = None) -> Tensors:
        """The parameters at which the next gradient is computed, at whatever generation the session is.

        Args:
          out: flat float32 vector (P,) to land them in; None means a new one.
        """
        landing = Landing(self._layout, out)

        def attempt() -> Tensors:
            stream, opened = self._introduce(self._settings.reply, generation=0)
            try:
                stream.send([_Request(pull=gradient_pb2.PullParameters(handle=HANDLE)).SerializeToString()])
                step = landing.receive(stream, 0)
            except BaseException:
                self._drop()  # No gradient may go on from parameters that never came.
                raise
            self._generation, self.step = opened.generation, step
            return landing.tensors

        return self._persist(attempt)

    def resync(self) -> None:
        """Accepts the session's present step and generation, after it was restored or imported elsewhere."""

        def attempt() -> None:
            _, opened = self._introduce(self._settings.reply, generation=0)
            self._generation, self.step = opened.generation, opened.step

        self._persist(attempt)

    @property
    def path(self) -> Literal["segment", "stream"]:
        """How payload travels now: in memory shared with the server, or on the stream."""
        return "segment" if self._stream is not None and self._stream.segment is not None else "stream"

    def close(self) -> None:
        """Ends the stream; the session lives on. Cuts a call in another thread off. Harmless when repeated."""
        self._closed = True
        with self._news:
            self._news.notify_all()
        while not self._lock.acquire(timeout=0.05):
            if (stream := self._stream) is not None:
                stream.cancel()
        try:
            if self._stream is not None:
                self._stream.close()
                self._stream = None
        finally:
            self._lock.release()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _contribute(
        self,
        gradients: Mapping[str, ArrayLike] | Float32,
        numbers: StepNumbers,
        reply: Reply,
        out: Float32 | None,
    ) -> tuple[StepResult, Tensors]:
        gradient = self._layout.flat(gradients, without=numbers.skipped)
        return self._carry(Contribution(gradient, self._layout, reply, self._news, numbers=numbers, out=out))

    def _carry_later(self, contribution: Contribution, before: Contribution | None) -> None:
        """What the thread of a contribution does that was begun."""
        if before is not None:
            before.wait_until_settled()
        try:
            _, tensors = self._carry(contribution, on_own_thread=True)
        except BaseException as error:
            contribution.settle(None, error)
        else:
            contribution.settle(tensors)

    def _carry(self, contribution: Contribution, *, on_own_thread: bool = False) -> tuple[StepResult, Tensors]:
        """Takes a contribution to the server and its answer back, on as many streams as it takes."""
        reply, sequence, sent = contribution.reply, 0, False
        coded: CodedGradient | None = None

        def attempt() -> tuple[StepResult, Tensors]:
            nonlocal sequence, sent, coded
            contribution.require_wanted()
            stream = self._open(reply, sequence)
            contribution.carried_by(stream)
            if on_own_thread:
                stream.note_thread()
            sequence = sequence or self._next_sequence  # A later attempt is about the same contribution.
            going_on = sent and self._resume_sequence == sequence
            gradient: OutgoingGradient | Sending
            if self._feedback is None:
                gradient = OutgoingGradient(
                    contribution,
                    self._settings.gradient_dtype,
                    self._chunk_bytes,
                    partial(self._commit, sequence, contribution),
                    stream.segment,
                    sequence=sequence,
                    begin=self._resume_offset if going_on and contribution.whole else 0,
                    # The server takes a chunk that begins where an earlier stream broke for the rest of what that one
                    # brought. So what may be another gradient, or cut otherwise, begins with its first element.
                    in_order=stream is not self._proven,
                )
            else:  # What a codec leaves out depends on the whole.
                contribution.wait_until_finished(lambda: self._closed)
                commit = self._commit(sequence, contribution)
                coded = coded or self._feedback.code(contribution.gradient, commit, self._chunk_bytes)
                gradient = coded.sending(commit, self._resume_offset if going_on else 0)
            self._resume_sequence = 0
            sent = True
            stream.send(gradient)
            try:
                result, chunk = wait_for_result(stream, sequence)
                if self._feedback is not None and coded is not None:
                    self._feedback.settle(coded, result)
                if on_own_thread:
                    contribution.answered(result)
                landing = Landing(contribution.answer, contribution.out)
                if reply is Reply.PARAMETERS or (reply is Reply.INCREMENT and result.applied):
                    told = contribution.landed if on_own_thread else None
                    self.step = landing.receive(stream, sequence, chunk, told)
                elif reply is Reply.INCREMENT:
                    landing.zero()
            except BaseException:
                gradient.abandon()
                contribution.require_wanted()
                raise
            self._proven = stream
            self._next_sequence = sequence + 1
            return result, landing.tensors

        return self._persist(attempt)

    def _commit(self, sequence: int, contribution: Contribution) -> hot.Commit:
        numbers = contribution.numbers or StepNumbers()
        return hot.Commit(
            handle=HANDLE,
            sequence=sequence,
            base_step=self.step or 0,
            loss=numbers.loss,
            sample_count=numbers.sample_count,
            lr_scale=numbers.lr_scale,
            want_digest=numbers.want_digest,
            skipped=numbers.skipped,
            loss_scale=numbers.loss_scale,
        )

    def _persist(self, attempt: Callable[[], _Answer]) -> _Answer:
        """The answer of the first attempt that succeeds, on as many streams as it takes."""
        with self._lock:
            patience: Patience | None = None
            while True:
                cutoff.check()
                if self._closed:
                    raise RuntimeError(f"worker {self.worker_id} is closed")
                try:
                    return attempt()
                except HermosisError as error:
                    if isinstance(error, ConnectionFailed):
                        self._drop()
                    # Time counts from the first trouble: a round may have waited long for other workers.
                    patience = patience or self._connection.patience()
                    patience.wait_after(error)
                except BaseException:
                    # Interrupted: what was under way is of no interest any more, the next call begins afresh.
                    self._drop()
                    raise

    def _open(self, reply: Reply, sequence: int) -> ExchangeStream:
        """The stream, with the session open on it for that kind of reply.

        Args:
          sequence: of the contribution whose fate is unknown; zero means there is none.
        """
        if self._stream is not None and not self._stream.ended and self._opened_for is reply:
            return self._stream
        following = sequence or self._next_sequence
        try:
            stream, opened = self._introduce(reply, generation=self._generation)
        except StaleGeneration:
            stream, opened = self._introduce(reply, generation=0)
            if not goes_on(opened, generation=self._generation, step=self.step, following=following):
                self._drop()
                self._next_sequence = following  # what it knows is what it knew, until it pulls
                raise
        self._generation = opened.generation
        if self.step is None:
            self.step = opened.step
        return stream

    def _introduce(self, reply: Reply, *, generation: int) -> tuple[ExchangeStream, gradient_pb2.SessionOpened]:
        """Opens the session anew, on the stream there is or on a new one. Generation zero means any."""
        if self._stream is None or self._stream.ended:
            self._stream = ExchangeStream(self._connection, self._new_segment(), self._coded_answers)
            self._opened_for = None
        opening = gradient_pb2.OpenSession(
            handle=HANDLE,
            session_id=self._session_id,
            worker_id=self.worker_id,
            generation=generation,
            layout_digest=self._layout.digest,
            gradient_dtype=codec.dtype_number(self._settings.gradient_dtype),
            reply=gradient_pb2.Reply.ValueType(reply),
            ack_level=types_pb2.AckLevel.ValueType(self._settings.ack_level),
            reply_dtype=codec.dtype_number(self._settings.reply_dtype),
            segment=self._stream.segment.offer if self._stream.segment is not None else None,
            gradient_codec=codec_message(self._settings.codec),
            reply_codec=codec_message(self._settings.reply_codec),
        )
        messages = [_Request(open=opening)]
        if self._opened_for is not None:
            messages.insert(0, _Request(close=gradient_pb2.CloseHandle(handle=HANDLE)))
        self._opened_for = None
        self._stream.send([message.SerializeToString() for message in messages])
        opened = wait_for_opening(self._stream)
        self._opened_for = reply
        if not opened.segment_attached:
            self._stream.release_segment()
        self._next_sequence = opened.next_sequence
        self._chunk_bytes = opened.chunk_bytes or wire.DEFAULT_CHUNK_BYTES
        self._resume_sequence, self._resume_offset = opened.resume_sequence, opened.resume_offset
        return self._stream, opened

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
            self._stream = self._proven = None

    def _new_segment(self) -> Segment | None:
        """Memory to offer to the server; None where it is not wanted, not possible or not worth it."""
        sent, back = self._settings.gradient_dtype, self._settings.reply_dtype
        coded = self._feedback is not None or self._coded_answers is not None
        if coded or not (self._settings.shared_memory and self._connection.shares_memory):
            return None
        if self._layout.parameter_count * max(sent.itemsize, back.itemsize) < MIN_PAYLOAD_BYTES:
            return None
        try:
            return Segment(self._layout.parameter_count, sent, back)
        except OSError:
            return None
