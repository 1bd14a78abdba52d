// Types of the YYC3 AI-Call pipeline, generated from yyc3.schema.json by `make types`.

/** What may be submitted, distinguished by `kind`. */
export type Job = IntentJob | SentimentJob | ChatJob | CodeJob | VisionJob | CompletionJob;

/** Find what the customer wants. Without `labels`, those of a call centre in the language of the text are used. */
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
  /** after this time the job is `expired` and no engine is asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; by default the first one that supports this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be reused; only for jobs without randomness (intent,
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

/** One utterance of one speaker. `start_seconds` and `end_seconds` count from the start of the call. */
export type Turn = {
  speaker: Speaker;
  text: string;
  start_seconds?: number | null;
  end_seconds?: number | null;
};

/** The speakers of a call. */
export type Speaker = "customer" | "agent";

/** The languages of the prompts. */
export type Language = "zh" | "en";

/** One intent of the caller's set. */
export type Label = {
  /** the label in the result. */
  name: string;
  /** explains the label to the model. */
  description?: string | null;
  /** utterances of this intent; they become worked examples in the prompt. */
  examples?: string[];
  /** the word that the model answers with, if it should differ from `name`. */
  word?: string | null;
};

/** Find how the customer feels. `context` has the turns before the utterance, so that the model understands it. */
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
  /** after this time the job is `expired` and no engine is asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; by default the first one that supports this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be reused; only for jobs without randomness (intent,
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

/** Continue a conversation. */
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
  /** after this time the job is `expired` and no engine is asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; by default the first one that supports this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be reused; only for jobs without randomness (intent,
   * sentiment, and temperature 0), and within the tenant.
   */
  cache?: boolean;
  sampling?: Sampling;
  stream?: boolean;
  messages: Message[];
};

/**
 * How the engine chooses tokens; names and ranges are vLLM's.
 *
 * The default of `max_tokens` is 512, for code 2,048.
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

/** One message of a chat. */
export type Message = {
  role: "system" | "user" | "assistant";
  content: string;
};

/** Write code. An answer without code, or one that `max_tokens` cut, is a failed attempt. */
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
  /** after this time the job is `expired` and no engine is asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; by default the first one that supports this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be reused; only for jobs without randomness (intent,
   * sentiment, and temperature 0), and within the tenant.
   */
  cache?: boolean;
  sampling?: Sampling;
  stream?: boolean;
  /** what the code should do. */
  instruction: string;
  /** the programming language, such as `python`. */
  language: string;
  /** existing code. */
  context?: string | null;
  /** the file that the code is for. */
  file_name?: string | null;
};

/** Answer a question about images. */
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
  /** after this time the job is `expired` and no engine is asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; by default the first one that supports this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be reused; only for jobs without randomness (intent,
   * sentiment, and temperature 0), and within the tenant.
   */
  cache?: boolean;
  sampling?: Sampling;
  stream?: boolean;
  question: string;
  /**
   * data URLs (`data:image/png;base64,...`) of PNG, JPEG, WebP or GIF; an https URL is fetched at submit if its host is
   * allowed. The image itself is stored, re-encoded.
   */
  images: string[];
  /** a JSON schema that the answer must conform to; without it the answer is text. */
  answer_schema?: Record<string, unknown> | null;
};

/** A chat completion of OpenAI, answered with the engine's whole body. */
export type CompletionJob = {
  kind: "completion";
  /**
   * the same key with the same job returns that job, whatever its deadline and priority were; with another job it is
   * refused.
   */
  idempotency_key?: string | null;
  /** a label to count by; keys are unique within it. */
  tenant?: string;
  /** lower goes first, like vLLM's; 0 is normal. */
  priority?: number;
  /** after this time the job is `expired` and no engine is asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; by default the first one that supports this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be reused; only for jobs without randomness (intent,
   * sentiment, and temperature 0), and within the tenant.
   */
  cache?: boolean;
  /**
   * what would be sent to /v1/chat/completions. `model` in it is an entry of models.toml, or the name that its engine
   * serves it under; `model` of the job wins.
   */
  body: Record<string, unknown>;
  /**
   * `exact` sends it alone, so that its usage is its own; `approximate` lets it share a request with rows of equal
   * parameters, whose prompt tokens are then divided by length. With tools, or n above 1, it always goes alone.
   */
  usage_mode?: UsageMode;
};

/** How the usage of a completion is counted. */
export type UsageMode = "exact" | "approximate";

/** Keyword arguments of the task `yyc3.submit` on the queue `yyc3.intake`, distinguished by `kind`. */
export type SubmitArguments = IntentArguments | SentimentArguments | ChatArguments | CodeArguments | VisionArguments | CompletionArguments;

/** Find what the customer wants. Without `labels`, those of a call centre in the language of the text are used. */
export type IntentArguments = {
  /** the caller's name for the job; the same key with the same job is the same job */
  job_key: string;
  /** the queue that gets the replies; without it no reply is sent */
  reply_to?: string | null;
  kind: "intent";
  /** a label to count by; keys are unique within it. */
  tenant?: string;
  /** lower goes first, like vLLM's; 0 is normal. */
  priority?: number;
  /** after this time the job is `expired` and no engine is asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; by default the first one that supports this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be reused; only for jobs without randomness (intent,
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

/** Find how the customer feels. `context` has the turns before the utterance, so that the model understands it. */
export type SentimentArguments = {
  /** the caller's name for the job; the same key with the same job is the same job */
  job_key: string;
  /** the queue that gets the replies; without it no reply is sent */
  reply_to?: string | null;
  kind: "sentiment";
  /** a label to count by; keys are unique within it. */
  tenant?: string;
  /** lower goes first, like vLLM's; 0 is normal. */
  priority?: number;
  /** after this time the job is `expired` and no engine is asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; by default the first one that supports this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be reused; only for jobs without randomness (intent,
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

/** Continue a conversation. */
export type ChatArguments = {
  /** the caller's name for the job; the same key with the same job is the same job */
  job_key: string;
  /** the queue that gets the replies; without it no reply is sent */
  reply_to?: string | null;
  kind: "chat";
  /** a label to count by; keys are unique within it. */
  tenant?: string;
  /** lower goes first, like vLLM's; 0 is normal. */
  priority?: number;
  /** after this time the job is `expired` and no engine is asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; by default the first one that supports this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be reused; only for jobs without randomness (intent,
   * sentiment, and temperature 0), and within the tenant.
   */
  cache?: boolean;
  sampling?: Sampling;
  stream?: boolean;
  messages: Message[];
};

/** Write code. An answer without code, or one that `max_tokens` cut, is a failed attempt. */
export type CodeArguments = {
  /** the caller's name for the job; the same key with the same job is the same job */
  job_key: string;
  /** the queue that gets the replies; without it no reply is sent */
  reply_to?: string | null;
  kind: "code";
  /** a label to count by; keys are unique within it. */
  tenant?: string;
  /** lower goes first, like vLLM's; 0 is normal. */
  priority?: number;
  /** after this time the job is `expired` and no engine is asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; by default the first one that supports this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be reused; only for jobs without randomness (intent,
   * sentiment, and temperature 0), and within the tenant.
   */
  cache?: boolean;
  sampling?: Sampling;
  stream?: boolean;
  /** what the code should do. */
  instruction: string;
  /** the programming language, such as `python`. */
  language: string;
  /** existing code. */
  context?: string | null;
  /** the file that the code is for. */
  file_name?: string | null;
};

/** Answer a question about images. */
export type VisionArguments = {
  /** the caller's name for the job; the same key with the same job is the same job */
  job_key: string;
  /** the queue that gets the replies; without it no reply is sent */
  reply_to?: string | null;
  kind: "vision";
  /** a label to count by; keys are unique within it. */
  tenant?: string;
  /** lower goes first, like vLLM's; 0 is normal. */
  priority?: number;
  /** after this time the job is `expired` and no engine is asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; by default the first one that supports this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be reused; only for jobs without randomness (intent,
   * sentiment, and temperature 0), and within the tenant.
   */
  cache?: boolean;
  sampling?: Sampling;
  stream?: boolean;
  question: string;
  /**
   * data URLs (`data:image/png;base64,...`) of PNG, JPEG, WebP or GIF; an https URL is fetched at submit if its host is
   * allowed. The image itself is stored, re-encoded.
   */
  images: string[];
  /** a JSON schema that the answer must conform to; without it the answer is text. */
  answer_schema?: Record<string, unknown> | null;
};

/** A chat completion of OpenAI, answered with the engine's whole body. */
export type CompletionArguments = {
  /** the caller's name for the job; the same key with the same job is the same job */
  job_key: string;
  /** the queue that gets the replies; without it no reply is sent */
  reply_to?: string | null;
  kind: "completion";
  /** a label to count by; keys are unique within it. */
  tenant?: string;
  /** lower goes first, like vLLM's; 0 is normal. */
  priority?: number;
  /** after this time the job is `expired` and no engine is asked. */
  deadline?: string | null;
  /** for the caller's own bookkeeping; stored, never interpreted. */
  tags?: Record<string, string>;
  /** an entry of models.toml; by default the first one that supports this kind. */
  model?: string | null;
  /**
   * whether the answer of an earlier job that asked the same may be reused; only for jobs without randomness (intent,
   * sentiment, and temperature 0), and within the tenant.
   */
  cache?: boolean;
  /**
   * what would be sent to /v1/chat/completions. `model` in it is an entry of models.toml, or the name that its engine
   * serves it under; `model` of the job wins.
   */
  body: Record<string, unknown>;
  /**
   * `exact` sends it alone, so that its usage is its own; `approximate` lets it share a request with rows of equal
   * parameters, whose prompt tokens are then divided by length. With tools, or n above 1, it always goes alone.
   */
  usage_mode?: UsageMode;
};

/** Everything known about a job. Until it is settled, only `state`, `error` and `model` have a meaning. */
export type Outcome = {
  job_id: number;
  kind: string;
  state: JobState;
  result: Result | null;
  error: JobError | null;
  usage: Usage;
  timings: Timings;
  /** engine attempts that failed and count. */
  attempts: number;
  model: string | null;
  /** what the endpoint serves under the model's name (vLLM: the path or hub name of its weights). */
  model_revision: string | null;
  endpoint: string | null;
  /** from the endpoint's /version. */
  engine_version: string | null;
  /** names the prompt template; the same hash means the same words around the caller's. */
  template_hash: string | null;
  /** whether a simulator answered; stored with the result. */
  simulated: boolean;
  /** the earlier job that asked the same, whose answer was copied; no token was spent. */
  cached_from: number | null;
  /** rows of the engine request that answered it; 1 if it was sent singly. */
  batch_rows: number | null;
};

/** The state of a job. The last four are final. */
export type JobState = "queued" | "running" | "succeeded" | "failed" | "cancelled" | "expired";

/** The result of a job that succeeded, distinguished by `kind`. */
export type Result = IntentResult | SentimentResult | ChatResult | CodeResult | VisionResult | CompletionResult;

/**
 * The label that fits best.
 *
 * `confidence` is its probability among the labels and `probabilities` the whole distribution; both are null if the
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

/** The reply. `finish_reason` is `stop`, or `length` if `max_tokens` cut it. */
export type ChatResult = {
  kind: "chat";
  /** the dialogue was longer than the model reads, its middle was left out */
  truncated: boolean;
  text: string;
  finish_reason: "stop" | "length";
};

/** The code without its fence. `explanation` is the text around it, null if there is none. */
export type CodeResult = {
  kind: "code";
  /** the dialogue was longer than the model reads, its middle was left out */
  truncated: boolean;
  code: string;
  language: string;
  explanation: string | null;
};

/** The answer; with an `answer_schema` it is JSON, and `answer` is the parsed value. */
export type VisionResult = {
  kind: "vision";
  /** the dialogue was longer than the model reads, its middle was left out */
  truncated: boolean;
  text: string;
  answer: unknown;
  finish_reason: "stop" | "length";
};

/** The whole body of the engine's answer, as an OpenAI client reads it: choices, usage, log probabilities, tool calls. */
export type CompletionResult = {
  kind: "completion";
  /** the dialogue was longer than the model reads, its middle was left out */
  truncated: boolean;
  body: Record<string, unknown>;
};

/** Why a job has no result. */
export type JobError = {
  code: ErrorCode;
  message: string;
};

/** The value of `outcomes.code` and of every refusal. */
export type ErrorCode =
  /** no entry of that name in models.toml, or it does not support this kind */
  | "unknown_model"
  /** an environment variable or a configuration file has an invalid value */
  | "invalid_setting"
  /** a file of results cannot be written; the message names it */
  | "unwritable_file"
  /** refused at submit; the message names the field */
  | "invalid_job"
  /** this idempotency key was used for another job */
  | "duplicate_job"
  /** the queue is full; the message says when to submit again */
  | "queue_saturated"
  /** a batch file cannot be read, or strict checking refused it */
  | "invalid_batch_file"
  /** a call file cannot be read, or one of its lines is not a call */
  | "invalid_call"
  /** Redis or the message broker cannot be reached */
  | "broker_unavailable"
  /** a queue message that cannot be processed */
  | "undecodable_message"
  /** Postgres cannot be reached */
  | "store_unavailable"
  /** Postgres cannot store one of its values */
  | "unstorable_value"
  /** no job with that id */
  | "job_not_found"
  /** no batch with that id */
  | "batch_not_found"
  /** another process reads the file of this batch, or it was cancelled */
  | "batch_taken_over"
  /** the endpoint does not answer, or answers something that is not about the job */
  | "engine_unavailable"
  /** the engine accepts no more work for now (503, 429) */
  | "engine_overloaded"
  /** no answer within the time limit */
  | "engine_timeout"
  /** the engine failed during the request (5xx, connection cut) */
  | "engine_failed"
  /** the engine refuses this request (400, 413, 422), now and later */
  | "request_rejected"
  /** the prompt has more tokens than the model reads */
  | "prompt_too_long"
  /** the answer is not what was asked for, is empty or unreadable */
  | "invalid_output"
  /** a filter of the engine cut the answer off */
  | "content_filtered"
  /** a bug in this program; the log of the worker names it */
  | "internal_error"
  /** stored by another version of this program; it waits for a worker of that version */
  | "newer_version"
  /** the worker that ran this job was lost; another one runs it */
  | "worker_lost"
  /** every worker that ran this job alone was lost */
  | "crashed_worker"
  /** the deadline of the job passed first */
  | "deadline_passed"
  /** a caller cancelled the job */
  | "cancelled"
  /** the caller stopped waiting; the job continues */
  | "result_timeout"
  /** a code of a newer version of this program */
  | "other";

/** Tokens. In a micro-batch the engine reports one sum; its prompt tokens are divided by text length. */
export type Usage = {
  prompt_tokens: number | null;
  completion_tokens: number | null;
};

/** Seconds in the life of a job. The parts need not add up to the total: settling comes after the answer. */
export type Timings = {
  /** from stored to claimed, on the database clock. */
  queue_wait_seconds: number | null;
  /** from claimed to sent to the engine. */
  batch_wait_seconds: number | null;
  /** from sent to the first token; null if the answer was not streamed. */
  first_token_seconds: number | null;
  /** from sent to the whole answer; shared by all rows of a micro-batch. */
  engine_seconds: number | null;
  /** from stored to answered. */
  total_seconds: number | null;
};

/** One event of a streamed answer, distinguished by `event`. */
export type StreamEvent = TextEvent | RestartEvent | EndEvent;

/** More of the answer. */
export type TextEvent = {
  event: "text";
  job_id: number;
  text: string;
};

/** An attempt failed after its first piece: discard its text, the next one begins. `attempt` counts from 1. */
export type RestartEvent = {
  event: "restart";
  job_id: number;
  attempt: number;
};

/** The job is settled. The text since the last restart is that of the stored result. */
export type EndEvent = {
  event: "end";
  job_id: number;
  outcome: Outcome;
};

/** Keyword arguments of the task `yyc3.reply`, distinguished by `event`. */
export type IntakeReply = AcceptedReply | RefusedReply | OutcomeReply;

/** The job is stored; its outcome follows. */
export type AcceptedReply = {
  event: "accepted";
  job_key: string | null;
  job_id: number;
};

/** Nothing was stored; no outcome follows. `job_key` is null if the message had no valid one. */
export type RefusedReply = {
  event: "refused";
  job_key: string | null;
  error: RefusalError;
};

/** Why a job was refused; with `queue_saturated`, after how many seconds it may be accepted. */
export type RefusalError = {
  code: ErrorCode;
  message: string;
  retry_after_seconds: number | null;
};

/** The job is settled. It may be sent twice, with the same content. */
export type OutcomeReply = {
  event: "outcome";
  job_key: string | null;
  job_id: number;
  outcome: Outcome;
};

/** Keyword arguments of `yyc3.cancel`. The outcome is sent to the queue that the job was submitted with. */
export type CancelArguments = {
  /** of the job to cancel. */
  job_key: string;
  /** of the job. */
  tenant?: string;
  /** the queue that gets a reply if there is no such job. */
  reply_to?: string | null;
};

/**
 * The argument of the Celery task `yyc3.chunk`.
 *
 * With `chunk` it says that this chunk was queued. Either way the worker that receives it claims
 * the best queued chunk of the model and lane at that moment; an open doorbell, without a chunk, is published
 * again when that chunk ends. Either may be lost or delivered twice; the
 * claim decides.
 */
export type Doorbell = {
  v: 1;
  model: string;
  lane: Lane;
  chunk?: number | null;
};

/** The two lanes of a model, never served by one worker process. */
export type Lane = "interactive" | "bulk";
