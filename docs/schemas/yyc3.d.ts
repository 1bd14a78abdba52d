// Types of the YYC3 AI-Call pipeline, made from yyc3.schema.json by `make types`.

/** What may be submitted, told apart by `kind`. */
export type Job = IntentJob | SentimentJob | ChatJob | CodeJob | VisionJob;

/** What does the customer want? `labels` left out means the call-centre set in the text's language. */
export type IntentJob = {
  kind: "intent";
  /**
   * the same key with the same job returns that job, whatever its deadline and priority were; with another job it is
   * refused.
   */
  idempotency_key?: string | null;
  /** a label to count by; keys are unique within it. */
  tenant?: string;
  /** lower goes first, like vLLM's; 0 is normal. */
  priority?: number;
  /** after this the job is `expired` without an engine being asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; left out, the first that can do this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be taken; only for jobs without randomness (intent,
   * sentiment, and temperature 0), and within the tenant.
   */
  cache?: boolean;
  text?: string | null;
  turns?: Turn[] | null;
  language?: Language | null;
  labels?: Label[] | null;
} & ({
  text: string;
} | {
  turns: Turn[];
});

/** One thing one speaker said. `start_seconds` and `end_seconds` count from the start of the call. */
export type Turn = {
  speaker: Speaker;
  text: string;
  start_seconds?: number | null;
  end_seconds?: number | null;
};

/** Who speaks in a call. */
export type Speaker = "customer" | "agent";

/** The languages that prompts are written in. */
export type Language = "zh" | "en";

/** One intent of the caller's set. */
export type Label = {
  /** what the result says. */
  name: string;
  /** what the model is told about it. */
  description?: string | null;
  /** utterances that mean it; they become worked examples in the prompt. */
  examples?: string[];
  /** the word the model answers with, where it should differ from `name`. */
  word?: string | null;
};

/** How does the customer feel? `context` holds the turns before the utterance, for the model to understand it. */
export type SentimentJob = {
  kind: "sentiment";
  /**
   * the same key with the same job returns that job, whatever its deadline and priority were; with another job it is
   * refused.
   */
  idempotency_key?: string | null;
  /** a label to count by; keys are unique within it. */
  tenant?: string;
  /** lower goes first, like vLLM's; 0 is normal. */
  priority?: number;
  /** after this the job is `expired` without an engine being asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; left out, the first that can do this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be taken; only for jobs without randomness (intent,
   * sentiment, and temperature 0), and within the tenant.
   */
  cache?: boolean;
  text?: string | null;
  turns?: Turn[] | null;
  language?: Language | null;
  context?: Turn[];
} & ({
  text: string;
} | {
  turns: Turn[];
});

/** Continue a conversation. `stream` sends the answer piece by piece while it is written, see schemas/streams.py. */
export type ChatJob = {
  kind: "chat";
  /**
   * the same key with the same job returns that job, whatever its deadline and priority were; with another job it is
   * refused.
   */
  idempotency_key?: string | null;
  /** a label to count by; keys are unique within it. */
  tenant?: string;
  /** lower goes first, like vLLM's; 0 is normal. */
  priority?: number;
  /** after this the job is `expired` without an engine being asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; left out, the first that can do this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be taken; only for jobs without randomness (intent,
   * sentiment, and temperature 0), and within the tenant.
   */
  cache?: boolean;
  messages: Message[];
  sampling?: Sampling;
  stream?: boolean;
};

/** One message of a chat. */
export type Message = {
  role: "system" | "user" | "assistant";
  content: string;
};

/**
 * How the engine chooses tokens; the names and ranges are vLLM's.
 *
 * `max_tokens` left out is 512, for code 2,048.
 */
export type Sampling = {
  max_tokens?: number | null;
  temperature?: number | null;
  top_p?: number | null;
  stop?: string[];
  seed?: number | null;
  presence_penalty?: number | null;
  frequency_penalty?: number | null;
};

/** Write code. An answer without code, or one that `max_tokens` cut, is a failed try. */
export type CodeJob = {
  kind: "code";
  /**
   * the same key with the same job returns that job, whatever its deadline and priority were; with another job it is
   * refused.
   */
  idempotency_key?: string | null;
  /** a label to count by; keys are unique within it. */
  tenant?: string;
  /** lower goes first, like vLLM's; 0 is normal. */
  priority?: number;
  /** after this the job is `expired` without an engine being asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; left out, the first that can do this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be taken; only for jobs without randomness (intent,
   * sentiment, and temperature 0), and within the tenant.
   */
  cache?: boolean;
  /** what the code should do. */
  instruction: string;
  /** the programming language, such as `python`. */
  language: string;
  /** code that is there already. */
  context?: string | null;
  /** where the code belongs. */
  file_name?: string | null;
  sampling?: Sampling;
  stream?: boolean;
};

/** Look at pictures and answer. */
export type VisionJob = {
  kind: "vision";
  /**
   * the same key with the same job returns that job, whatever its deadline and priority were; with another job it is
   * refused.
   */
  idempotency_key?: string | null;
  /** a label to count by; keys are unique within it. */
  tenant?: string;
  /** lower goes first, like vLLM's; 0 is normal. */
  priority?: number;
  /** after this the job is `expired` without an engine being asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; left out, the first that can do this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be taken; only for jobs without randomness (intent,
   * sentiment, and temperature 0), and within the tenant.
   */
  cache?: boolean;
  question: string;
  /**
   * data URLs (`data:image/png;base64,...`) of PNG, JPEG, WebP or GIF; an https URL is fetched at submit if its host is
   * allowed. What is stored is the picture itself, re-encoded.
   */
  images: string[];
  /** a JSON schema the answer must obey; without it the answer is text. */
  answer_schema?: Record<string, unknown> | null;
  sampling?: Sampling;
  stream?: boolean;
};

/** Keyword arguments of the task `yyc3.submit` on the queue `yyc3.intake`, told apart by `kind`. */
export type SubmitArguments = IntentArguments | SentimentArguments | ChatArguments | CodeArguments | VisionArguments;

/** What does the customer want? `labels` left out means the call-centre set in the text's language. */
export type IntentArguments = {
  /** the caller's name for the job; the same key with the same job is the same job */
  job_key: string;
  /** the queue that gets the replies; left out, nobody is told */
  reply_to?: string | null;
  kind: "intent";
  /** a label to count by; keys are unique within it. */
  tenant?: string;
  /** lower goes first, like vLLM's; 0 is normal. */
  priority?: number;
  /** after this the job is `expired` without an engine being asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; left out, the first that can do this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be taken; only for jobs without randomness (intent,
   * sentiment, and temperature 0), and within the tenant.
   */
  cache?: boolean;
  text?: string | null;
  turns?: Turn[] | null;
  language?: Language | null;
  labels?: Label[] | null;
} & ({
  text: string;
} | {
  turns: Turn[];
});

/** How does the customer feel? `context` holds the turns before the utterance, for the model to understand it. */
export type SentimentArguments = {
  /** the caller's name for the job; the same key with the same job is the same job */
  job_key: string;
  /** the queue that gets the replies; left out, nobody is told */
  reply_to?: string | null;
  kind: "sentiment";
  /** a label to count by; keys are unique within it. */
  tenant?: string;
  /** lower goes first, like vLLM's; 0 is normal. */
  priority?: number;
  /** after this the job is `expired` without an engine being asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; left out, the first that can do this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be taken; only for jobs without randomness (intent,
   * sentiment, and temperature 0), and within the tenant.
   */
  cache?: boolean;
  text?: string | null;
  turns?: Turn[] | null;
  language?: Language | null;
  context?: Turn[];
} & ({
  text: string;
} | {
  turns: Turn[];
});

/** Continue a conversation. `stream` sends the answer piece by piece while it is written, see schemas/streams.py. */
export type ChatArguments = {
  /** the caller's name for the job; the same key with the same job is the same job */
  job_key: string;
  /** the queue that gets the replies; left out, nobody is told */
  reply_to?: string | null;
  kind: "chat";
  /** a label to count by; keys are unique within it. */
  tenant?: string;
  /** lower goes first, like vLLM's; 0 is normal. */
  priority?: number;
  /** after this the job is `expired` without an engine being asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; left out, the first that can do this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be taken; only for jobs without randomness (intent,
   * sentiment, and temperature 0), and within the tenant.
   */
  cache?: boolean;
  messages: Message[];
  sampling?: Sampling;
  stream?: boolean;
};

/** Write code. An answer without code, or one that `max_tokens` cut, is a failed try. */
export type CodeArguments = {
  /** the caller's name for the job; the same key with the same job is the same job */
  job_key: string;
  /** the queue that gets the replies; left out, nobody is told */
  reply_to?: string | null;
  kind: "code";
  /** a label to count by; keys are unique within it. */
  tenant?: string;
  /** lower goes first, like vLLM's; 0 is normal. */
  priority?: number;
  /** after this the job is `expired` without an engine being asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; left out, the first that can do this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be taken; only for jobs without randomness (intent,
   * sentiment, and temperature 0), and within the tenant.
   */
  cache?: boolean;
  /** what the code should do. */
  instruction: string;
  /** the programming language, such as `python`. */
  language: string;
  /** code that is there already. */
  context?: string | null;
  /** where the code belongs. */
  file_name?: string | null;
  sampling?: Sampling;
  stream?: boolean;
};

/** Look at pictures and answer. */
export type VisionArguments = {
  /** the caller's name for the job; the same key with the same job is the same job */
  job_key: string;
  /** the queue that gets the replies; left out, nobody is told */
  reply_to?: string | null;
  kind: "vision";
  /** a label to count by; keys are unique within it. */
  tenant?: string;
  /** lower goes first, like vLLM's; 0 is normal. */
  priority?: number;
  /** after this the job is `expired` without an engine being asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; left out, the first that can do this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be taken; only for jobs without randomness (intent,
   * sentiment, and temperature 0), and within the tenant.
   */
  cache?: boolean;
  question: string;
  /**
   * data URLs (`data:image/png;base64,...`) of PNG, JPEG, WebP or GIF; an https URL is fetched at submit if its host is
   * allowed. What is stored is the picture itself, re-encoded.
   */
  images: string[];
  /** a JSON schema the answer must obey; without it the answer is text. */
  answer_schema?: Record<string, unknown> | null;
  sampling?: Sampling;
  stream?: boolean;
};

/** Everything known about a job. Until it is settled only `state` says something. */
export type Outcome = {
  job_id: number;
  kind: string;
  state: JobState;
  result: Result | null;
  error: JobError | null;
  usage: Usage;
  timings: Timings;
  /** engine attempts that failed and counted. */
  tries: number;
  model: string | null;
  /** what the endpoint says it serves under the model's name (vLLM: the path or hub name of its weights). */
  model_revision: string | null;
  endpoint: string | null;
  /** what the endpoint's /version said. */
  engine_version: string | null;
  /** which prompt template asked; the same hash means the same words around the caller's. */
  template_hash: string | null;
  /** true where a simulator answered, for ever. */
  simulated: boolean;
  /** the earlier job that asked the same, whose answer this is a copy of; no token was spent. */
  cached_from: number | null;
  /** rows of the engine request that answered it; 1 where it went alone. */
  batch_rows: number | null;
};

/** Where a job is. The last four never change again. */
export type JobState = "queued" | "running" | "succeeded" | "failed" | "cancelled" | "expired";

/** What a job that succeeded came to, told apart by `kind`. */
export type Result = IntentResult | SentimentResult | ChatResult | CodeResult | VisionResult;

/**
 * The caller's label that fits best.
 *
 * `confidence` is its probability among the labels and `probabilities` the whole distribution; both are null where the
 * engine gave no token probabilities.
 */
export type IntentResult = {
  kind: "intent";
  /** the dialogue was longer than the model reads, its middle was left out */
  truncated: boolean;
  label: string;
  confidence: number | null;
  probabilities: Record<string, number> | null;
};

/** Positive, neutral or negative; `score` in [-1, 1] is P(positive) - P(negative), or -1, 0, 1 without probabilities. */
export type SentimentResult = {
  kind: "sentiment";
  /** the dialogue was longer than the model reads, its middle was left out */
  truncated: boolean;
  label: SentimentLabel;
  score: number;
  confidence: number | null;
  probabilities: Record<string, number> | null;
};

/** The three sentiments. */
export type SentimentLabel = "positive" | "neutral" | "negative";

/** The reply. `finish_reason` is `stop`, or `length` where `max_tokens` cut it. */
export type ChatResult = {
  kind: "chat";
  /** the dialogue was longer than the model reads, its middle was left out */
  truncated: boolean;
  text: string;
  finish_reason: "stop" | "length";
};

/** The code without its fence. `explanation` is what the model wrote around it, null where it wrote nothing. */
export type CodeResult = {
  kind: "code";
  /** the dialogue was longer than the model reads, its middle was left out */
  truncated: boolean;
  code: string;
  language: string;
  explanation: string | null;
};

/** The answer; with an `answer_schema` it is JSON, and `answer` holds it parsed. */
export type VisionResult = {
  kind: "vision";
  /** the dialogue was longer than the model reads, its middle was left out */
  truncated: boolean;
  text: string;
  answer: unknown;
  finish_reason: "stop" | "length";
};

/** Why a job has no result. */
export type JobError = {
  code: ErrorCode;
  message: string;
};

/** What stands in `outcomes.code` and in every refusal. */
export type ErrorCode =
  /** no entry of that name in models.toml, or it cannot do this kind */
  | "unknown_model"
  /** an environment variable or a file of ours says something impossible */
  | "invalid_setting"
  /** refused at submit; the message names the field */
  | "invalid_job"
  /** this idempotency key was used for another job */
  | "duplicate_job"
  /** too much is queued already; the message says when to submit again */
  | "queue_saturated"
  /** a line of a call file that is no call */
  | "invalid_call"
  /** Redis or the message broker cannot be reached */
  | "broker_unavailable"
  /** a queue message that is not ours */
  | "undecodable_message"
  /** Postgres cannot be reached */
  | "store_unavailable"
  /** Postgres cannot store something in it */
  | "value_refused"
  /** no job of that id */
  | "job_not_found"
  /** nobody answers at the endpoint */
  | "engine_unavailable"
  /** the engine refuses more work for now (503, 429) */
  | "engine_overloaded"
  /** no answer within the time limit */
  | "engine_timeout"
  /** the engine broke while it worked (5xx, connection cut) */
  | "engine_failed"
  /** the engine will not do this request (4xx), now or later */
  | "request_rejected"
  /** more tokens than the model's context */
  | "prompt_too_long"
  /** an answer outside what was asked for, empty or unreadable */
  | "invalid_output"
  /** a mistake in this program; the worker's log names it */
  | "own_fault"
  /** the worker that ran this job died; another takes it */
  | "worker_lost"
  /** every worker that ran this job alone died */
  | "crashed_worker"
  /** the job's own deadline came first */
  | "deadline_passed"
  /** somebody cancelled it */
  | "cancelled"
  /** the caller stopped waiting; the job goes on */
  | "result_timeout"
  /** a code of a newer version of this program */
  | "other";

/** Tokens. In a micro-batch the engine reports one sum; prompt tokens are then shared out by text length. */
export type Usage = {
  prompt_tokens: number | null;
  completion_tokens: number | null;
};

/** Seconds of a job's life. The parts need not add up to the total: settling comes after the answer. */
export type Timings = {
  /** from stored to claimed, on the database clock. */
  queue_wait_seconds: number | null;
  /** from claimed to sent to the engine. */
  batch_wait_seconds: number | null;
  /** from sent to the first token; null where the answer was not streamed. */
  first_token_seconds: number | null;
  /** from sent to the whole answer; shared by all rows of a micro-batch. */
  engine_seconds: number | null;
  /** from stored to answered. */
  total_seconds: number | null;
};

/** One event of a streamed answer, told apart by `event`. */
export type StreamEvent = TextEvent | RestartEvent | EndEvent;

/** More of the answer. */
export type TextEvent = {
  event: "text";
  job_id: number;
  text: string;
};

/** A try failed after it had begun to answer: forget its text, another begins. `try_number` counts from 1. */
export type RestartEvent = {
  event: "restart";
  job_id: number;
  try_number: number;
};

/** The job is settled. All text since the last restart is the stored result's. */
export type EndEvent = {
  event: "end";
  job_id: number;
  outcome: Outcome;
};

/** Keyword arguments of the task `yyc3.reply`, told apart by `event`. */
export type IntakeReply = AcceptedReply | RefusedReply | OutcomeReply;

/** The job is stored; its outcome follows. */
export type AcceptedReply = {
  event: "accepted";
  job_key: string | null;
  job_id: number;
};

/** Nothing was stored; nothing follows. `job_key` is null where the message had none that can be used. */
export type RefusedReply = {
  event: "refused";
  job_key: string | null;
  error: RefusalError;
};

/** Why a job was refused; with `queue_saturated`, after how many seconds the same one may be accepted. */
export type RefusalError = {
  code: ErrorCode;
  message: string;
  retry_after_seconds: number | null;
};

/** The job is settled. It may come twice, and then says the same. */
export type OutcomeReply = {
  event: "outcome";
  job_key: string | null;
  job_id: number;
  outcome: Outcome;
};

/** Keyword arguments of `yyc3.cancel`. The outcome comes to the queue that the job was submitted with. */
export type CancelArguments = {
  /** of the job to be cancelled. */
  job_key: string;
  /** as it was submitted. */
  tenant?: string;
  /** the queue that hears if there is no such job. */
  reply_to?: string | null;
};

/**
 * Argument of the Celery task `yyc3.chunk`.
 *
 * Without `chunk` it is a permit: whoever takes it picks the best queued chunk of the model and lane at that moment.
 * With `chunk` it means that one. Either may be lost or come twice; the claim decides.
 */
export type Doorbell = {
  v: 1;
  model: string;
  lane: Lane;
  chunk?: number | null;
};

/** Two lanes a model, never in one worker process. */
export type Lane = "interactive" | "bulk";
