"""Rows of published shapes: of datasets, of fine-tuning services, of frameworks and of labelling tools.

Each is as its authors publish it, with the same question and answers in it, so that one thing is expected of all.
"""

from __future__ import annotations

import json
from typing import Any

QUESTION, GOOD, BAD = "Capital of France?", "Paris.", "Lyon."


def user(text: str = QUESTION) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def human(text: str = QUESTION) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


WHOLE = {"chosen": [user(), assistant(GOOD)], "rejected": [user(), assistant(BAD)]}
TEXTS = {"chosen": GOOD, "rejected": BAD}
EARLIER = [user("Hi"), assistant("Hello!")]
EMPTY = dict.fromkeys(("role", "content", "from", "value", "name", "tool_calls"))
PARTS = [{"type": "text", "text": QUESTION}]


def oasst(name: str, parent: str | None, role: str, text: str, rank: int | None = None) -> dict[str, Any]:
    """A message of OpenAssistant's flat files."""
    return {
        "message_id": name,
        "parent_id": parent,
        "message_tree_id": "t",
        "text": text,
        "role": role,
        "lang": "en",
        "rank": rank,
        "deleted": False,
    }


def steered(text: str, helpfulness: int) -> dict[str, Any]:
    """A row of HelpSteer."""
    marks = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 1}
    return {"prompt": QUESTION, "response": text, "helpfulness": helpfulness, **marks}


def arena(winner: str, **more: Any) -> dict[str, Any]:
    """A row of the arena's conversations."""
    return {
        "question_id": "1",
        "model_a": "x",
        "model_b": "y",
        "winner": winner,
        "conversation_a": [user(), assistant(BAD)],
        "conversation_b": [user(), assistant(GOOD)],
        **more,
    }


ONE_ROW: dict[str, tuple[str, dict[str, Any]]] = {
    # services
    "OpenAI": (
        "openai",
        {
            "input": {"messages": [user()], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [assistant(GOOD)],
            "non_preferred_output": [assistant(BAD)],
        },
    ),
    "Azure OpenAI": (
        "openai",
        {
            "input": {"messages": [user()]},
            "preferred_output": [assistant(GOOD)],
            "non_preferred_output": [assistant(BAD)],
        },
    ),
    "Together": (
        "openai",
        {
            "input": {"messages": [user()]},
            "preferred_output": [assistant(GOOD)],
            "non_preferred_output": [assistant(BAD)],
        },
    ),
    "Fireworks": (
        "openai",
        {
            "input": {"messages": [user()], "tools": []},
            "preferred_output": [assistant(GOOD)],
            "non_preferred_output": [assistant(BAD)],
        },
    ),
    "Vertex AI": (
        "vertex",
        {
            "contents": [{"role": "user", "parts": [{"text": QUESTION}]}],
            "completions": [
                {"score": 0.0, "completion": {"role": "model", "parts": [{"text": BAD}]}},
                {"score": 1.0, "completion": {"role": "model", "parts": [{"text": GOOD}]}},
            ],
        },
    ),
    "Amazon Nova": (
        "nova",
        {
            "schemaVersion": "bedrock-conversation-2024",
            "messages": [
                {"role": "user", "content": [{"text": QUESTION}]},
                {
                    "role": "assistant",
                    "candidates": [
                        {"content": [{"text": GOOD}], "preferenceLabel": "preferred"},
                        {"content": [{"text": BAD}], "preferenceLabel": "non-preferred"},
                    ],
                },
            ],
        },
    ),
    "OpenPipe": ("swift", {"messages": [user(), assistant(GOOD)], "rejected_message": assistant(BAD)}),
    # frameworks
    "TRL, text": ("pairs", {"prompt": QUESTION, **TEXTS}),
    "TRL, conversations": (
        "pairs",
        {"prompt": [user()], "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]},
    ),
    "TRL, conversations without a prompt": ("implicit_prompt", WHOLE),
    "TRL, text without a prompt": (
        "implicit_text",
        {"chosen": f"{QUESTION} {GOOD}", "rejected": f"{QUESTION} {BAD}"},
    ),
    "axolotl, chat_template.default": (
        "named_pairs",
        {"messages": [user()], "chosen": assistant(GOOD), "rejected": assistant(BAD)},
    ),
    "axolotl, chatml.icr": ("named_pairs", {"system": "", "input": QUESTION, **TEXTS}),
    "axolotl, chatml.intel": ("orca", {"system": "", "question": QUESTION, **TEXTS}),
    "axolotl, chatml.argilla": (
        "ultrafeedback_binarized",
        {"system": "", "instruction": QUESTION, "chosen_response": GOOD, "rejected_response": BAD},
    ),
    "axolotl, chatml.prompt_pairs": ("pairs", {"system": "", "prompt": QUESTION, **TEXTS}),
    "LLaMA-Factory, Alpaca": ("alpaca", {"instruction": "Capital of", "input": "France?", **TEXTS}),
    "LLaMA-Factory, old lists": (
        "alpaca_lists",
        {"instruction": QUESTION, "input": "", "output": [GOOD, BAD], "history": []},
    ),
    "LLaMA-Factory, ShareGPT": (
        "llama_factory",
        {"conversations": [human()], "chosen": gpt(GOOD), "rejected": gpt(BAD)},
    ),
    "ms-swift, messages": ("swift", {"messages": [user(), assistant(GOOD)], "rejected_response": BAD}),
    "ms-swift, rejected_messages": (
        "swift",
        {"messages": [user(), assistant(GOOD)], "rejected_messages": [user(), assistant(BAD)]},
    ),
    "ms-swift, query": ("named_pairs", {"query": QUESTION, "response": GOOD, "rejected_response": BAD}),
    "NeMo-RL": (
        "nemo_rl",
        {
            "context": [user()],
            "completions": [
                {"rank": 0, "completion": [assistant(GOOD)]},
                {"rank": 1, "completion": [assistant(BAD)]},
            ],
        },
    ),
    "NeMo-Aligner": (
        "named_pairs",
        {
            "prompt": f"<extra_id_0>System\n\n<extra_id_1>User\n{QUESTION}\n<extra_id_1>Assistant\n",
            "chosen_response": f"{GOOD}\n<extra_id_1>",
            "rejected_response": f"{BAD}\n<extra_id_1>",
            "chosen_reward": 5.0,
            "rejected_reward": 1.0,
        },
    ),
    "torchtune": (
        "implicit_prompt",
        {"chosen_conversations": [human(), gpt(GOOD)], "rejected_conversations": [human(), gpt(BAD)]},
    ),
    "Colossal-AI": (
        "named_pairs",
        {
            "context": [{"from": "human", "content": QUESTION}],
            "chosen": [{"from": "assistant", "content": GOOD}],
            "rejected": [{"from": "assistant", "content": BAD}],
        },
    ),
    "OpenRLHF": ("implicit_prompt", {**WHOLE, "margin": 1.0}),
    "DeepSpeed-Chat": (
        "pairs",
        {"prompt": f"Human: {QUESTION} Assistant:", "chosen": f" {GOOD}", "rejected": f" {BAD}"},
    ),
    "OpenAI, parts of its newer interface": (
        "openai",
        {
            "input": {"messages": [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]},
            "preferred_output": [{"role": "assistant", "content": [{"type": "output_text", "text": GOOD}]}],
            "non_preferred_output": [{"role": "assistant", "content": [{"type": "output_text", "text": BAD}]}],
        },
    ),
    "Parquet, messages with the keys of several tools": (
        "implicit_prompt",
        {
            "chosen": [EMPTY | user(), EMPTY | assistant(GOOD)],
            "rejected": [EMPTY | human(), EMPTY | gpt(BAD)],
        },
    ),
    "Unsloth, ORPO": (
        "named_pairs",
        {"instruction": "Capital of", "input": "France?", "accepted": GOOD, "rejected": BAD},
    ),
    "H2O LLM Studio": ("named_pairs", {"instruction": QUESTION, "output": GOOD, "rejected_output": BAD}),
    # labelling tools
    "Argilla 2": (
        "argilla",
        {
            "id": "1",
            "status": "completed",
            "fields": {"prompt": QUESTION, "response_1": BAD, "response_2": GOOD},
            "responses": {"preference": [{"value": "response_2", "user_id": "u"}]},
            "suggestions": {},
        },
    ),
    "Argilla 2, a ranking": (
        "argilla",
        {
            "fields": {"instruction": QUESTION, "response-a": GOOD, "response-b": BAD},
            "responses": {
                "rank": [{"value": [{"value": "response-a", "rank": 1}, {"value": "response-b", "rank": 2}]}]
            },
        },
    ),
    "Argilla 1": (
        "argilla",
        {
            "fields": {"prompt": QUESTION, "response1": GOOD, "response2": BAD},
            "responses": [{"user_id": "u", "status": "submitted", "values": {"best": {"value": "1"}}}],
        },
    ),
    "Argilla 2, a rating beside the vote, one vote discarded": (
        "argilla",
        {
            "fields": {"chat": [user()], "response_1": BAD, "response_2": GOOD},
            "responses": {
                "preference": [
                    {"value": "response_1", "user_id": "u", "status": "discarded"},
                    {"value": "response_2", "user_id": "v", "status": "submitted"},
                ],
                "difficulty": [{"value": 1, "user_id": "v"}],
                "comment": [{"value": "Well.", "user_id": "v"}],
            },
        },
    ),
    "Argilla 2, a ranking in order": (
        "argilla",
        {
            "fields": {"prompt": QUESTION, "reply-1": BAD, "reply-2": GOOD},
            "responses": {"rank": [{"value": ["reply-2", "reply-1"], "user_id": "u"}]},
        },
    ),
    "Argilla 2, as a dataset": (
        "argilla",
        {
            "id": "1",
            "status": "completed",
            "prompt": QUESTION,
            "response_1": BAD,
            "response_2": GOOD,
            "preference.responses": ["response_1", "response_2"],
            "preference.responses.users": ["u", "v"],
            "preference.responses.status": ["discarded", "submitted"],
            "preference.suggestion": "response_1",
        },
    ),
    "Argilla 1, as a dataset": (
        "argilla",
        {
            "prompt": QUESTION,
            "response-1": BAD,
            "response-2": GOOD,
            "ranking": [
                {
                    "user_id": "u",
                    "value": {"rank": [1, 2], "value": ["response-2", "response-1"]},
                    "status": "submitted",
                }
            ],
            "ranking-suggestion": None,
            "external_id": None,
            "metadata": "{}",
        },
    ),
    "Label Studio": (
        "label_studio",
        {
            "id": 1,
            "data": {"prompt": QUESTION, "answer1": BAD, "answer2": GOOD},
            "annotations": [
                {"id": 2, "result": [{"type": "pairwise", "from_name": "comparison", "value": {"selected": "right"}}]}
            ],
        },
    ),
    "Label Studio, JSON-MIN": (
        "judged",
        {"prompt": QUESTION, "answer1": GOOD, "answer2": BAD, "comparison": "left", "id": 1, "annotator": 1},
    ),
    # datasets of pairs
    "HuggingFaceH4/ultrafeedback_binarized": (
        "pairs",
        {"prompt": QUESTION, "prompt_id": "ab", **WHOLE, "messages": WHOLE["chosen"], "score_chosen": 9.0},
    ),
    "HuggingFaceH4/cai-conversation-harmless": ("pairs", {"index": 1, "prompt": QUESTION, "init_prompt": "x", **WHOLE}),
    "argilla/distilabel-intel-orca-dpo-pairs": (
        "named_pairs",
        {"system": "", "input": QUESTION, **TEXTS, "status": "tie", "rating": [9.0, 8.0], "chosen_score": 9.0},
    ),
    "argilla/distilabel-math-preference-dpo": (
        "ultrafeedback_binarized",
        {
            "instruction": QUESTION,
            "chosen_response": GOOD,
            "chosen_rating": 9.0,
            "rejected_response": BAD,
            "rejected_rating": 7.0,
        },
    ),
    "argilla/distilabel-capybara-dpo-7k-binarized": (
        "pairs",
        {"source": "x", "prompt": QUESTION, **WHOLE, "rating_chosen": 5, "rating_rejected": 1},
    ),
    "argilla/OpenHermesPreferences": (
        "pairs",
        {"source": "x", "prompt": QUESTION, "candidates_completions": ["a", "b"], "ranks": [1, 2], **WHOLE},
    ),
    "argilla/dpo-mix-7k": ("implicit_prompt", {"dataset": "x", **WHOLE, "chosen_rating": 5.0, "rejected_rating": 4.0}),
    "distilabel, instruction and conversations": ("alpaca", {"instruction": QUESTION, **WHOLE}),
    "Magpie-Align/Magpie-Pro-DPO": ("alpaca", {"id": "1", "instruction": QUESTION, **WHOLE, "gen_input_configs": {}}),
    "distilabel, UltraFeedback's task": (
        "scored_answers",
        {"instruction": QUESTION, "generations": [BAD, GOOD], "ratings": [1.0, 5.0], "rationales": ["x", "y"]},
    ),
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": (
        "pairs",
        {"id": "1", "source": "x", "prompt": QUESTION, **WHOLE},
    ),
    "allenai/reward-bench": ("pairs", {"prompt": QUESTION, **TEXTS, "chosen_model": "a", "subset": "x", "id": 1}),
    "allenai/reward-bench-2": (
        "answer_lists",
        {"id": "1", "prompt": QUESTION, "chosen": [GOOD], "rejected": [BAD], "num_correct": 1},
    ),
    "Skywork/Skywork-Reward-Preference-80K": ("implicit_prompt", {**WHOLE, "source": "x"}),
    "princeton-nlp/llama3-ultrafeedback": (
        "pairs",
        {"prompt_id": "a", "prompt": QUESTION, "all_generated_responses": ["x"], "all_rm_scores": [1.0], **WHOLE},
    ),
    "snorkelai/Snorkel-Mistral-PairRM-DPO-Dataset": ("pairs", {"prompt_id": "a", "prompt": QUESTION, **WHOLE}),
    "mlabonne/orpo-dpo-mix-40k": ("pairs", {"source": "x", **WHOLE, "prompt": QUESTION, "question": QUESTION}),
    "jondurbin/truthy-dpo": ("pairs", {"id": "1", "source": "x", "system": "", "prompt": QUESTION, **TEXTS}),
    "jondurbin/gutenberg-dpo": ("pairs", {"prompt": QUESTION, **TEXTS, "rejected_model": "x"}),
    "trl-lib/tldr-preference": ("pairs", {"prompt": QUESTION, **TEXTS}),
    "trl-lib/ultrafeedback_binarized": ("implicit_prompt", {**WHOLE, "score_chosen": 9.0, "score_rejected": 8.0}),
    "Anthropic/hh-rlhf": (
        "transcripts",
        {side: f"\n\nHuman: {QUESTION}\n\nAssistant: {text}" for side, text in TEXTS.items()},
    ),
    "Dahoas/full-hh-rlhf": (
        "pairs",
        {
            "prompt": f" \n\nHuman: {QUESTION}\n\nAssistant:",
            "response": "x",
            "chosen": f" {GOOD}",
            "rejected": f" {BAD}",
        },
    ),
    "yitingxie/rlhf-reward-datasets": (
        "pairs",
        {"prompt": f"\n\nHuman: {QUESTION}\n\nAssistant:", "chosen": f" {GOOD}", "rejected": f" {BAD}"},
    ),
    "PKU-Alignment/processed-hh-rlhf": (
        "named_pairs",
        {
            "context": [{"role": "human", "text": QUESTION}],
            "chosen": {"role": "assistant", "text": GOOD},
            "rejected": {"role": "assistant", "text": BAD},
        },
    ),
    "Vezora/Code-Preference-Pairs": ("named_pairs", {"input": QUESTION, "accepted": GOOD, "rejected": BAD, "ID": 1}),
    "lvwerra/stack-exchange-paired": (
        "named_pairs",
        {"qid": 1, "question": QUESTION, "date": "x", "metadata": [], "response_j": GOOD, "response_k": BAD},
    ),
    "openbmb/UltraInteract_pair": (
        "named_pairs",
        {"task": "x", "trajectory": [{"from": "user", "value": QUESTION}], **TEXTS, "id": "1"},
    ),
    "shibing624/DPO-En-Zh-20k-Preference": (
        "named_pairs",
        {"system": "", "history": [], "question": QUESTION, "response_chosen": GOOD, "response_rejected": BAD},
    ),
    "xinlai/Math-Step-DPO-10K": (
        "step_dpo",
        {"prompt": QUESTION, "initial_reason_steps": "Par", "chosen": "is.", "rejected": "ma.", "answer": "x"},
    ),
    "Intel/orca_dpo_pairs": ("orca", {"system": "", "question": QUESTION, "chosen": GOOD, "rejected": f" {BAD}"}),
    "CValues-Comparison": ("named_pairs", {"prompt": QUESTION, "pos_resp": GOOD, "neg_resp": BAD, "type": "x"}),
    # several answers
    "GPT-4-LLM's comparison_data": (
        "scored_answers",
        {
            "user_input": QUESTION,
            "responses_and_scores": [
                {"response": BAD, "source": "a", "score": 4.0},
                {"response": GOOD, "source": "b", "score": 9.0},
            ],
        },
    ),
    "answers as lists of messages": (
        "scored_answers",
        {"prompt": [user()], "responses": [[assistant(GOOD)], [assistant(BAD)]], "rewards": [1.0, -0.5]},
    ),
    "distilabel, a conversation": (
        "scored_answers",
        {"conversation": [user()], "generations": [GOOD, BAD, None], "ratings": [5.0, 1.0, None]},
    ),
    "openbmb/UltraFeedback": (
        "ultrafeedback",
        {
            "source": "x",
            "instruction": QUESTION,
            "models": ["a", "b"],
            "completions": [
                {"model": "a", "response": BAD, "overall_score": 2.0},
                {"model": "b", "response": GOOD, "overall_score": 9.0},
            ],
        },
    ),
    "berkeley-nest/Nectar": (
        "scored_answers",
        {
            "prompt": f"\n\nHuman: {QUESTION}\n\nAssistant: ",
            "answers": [{"answer": GOOD, "model": "a", "rank": 1.0}, {"answer": BAD, "model": "b", "rank": 7.0}],
            "turns": 1,
        },
    ),
    "HuggingFaceH4/stack-exchange-preferences": (
        "scored_answers",
        {
            "qid": 1,
            "question": QUESTION,
            "answers": [
                {"answer_id": 1, "pm_score": 0, "selected": False, "text": BAD},
                {"answer_id": 2, "pm_score": 5, "selected": True, "text": GOOD},
            ],
        },
    ),
    "openai/summarize_from_feedback": (
        "summaries",
        {"info": {"id": "x", "post": QUESTION}, "summaries": [{"text": f" {BAD}"}, {"text": f" {GOOD}"}], "choice": 1},
    ),
    "openai/webgpt_comparisons": (
        "webgpt",
        {
            "question": {"dataset": "x", "id": "1", "full_text": QUESTION},
            "answer_0": GOOD,
            "answer_1": BAD,
            "score_0": 0.5,
            "score_1": -0.5,
        },
    ),
    "llm-blender/Unified-Feedback": (
        "rated_conversations",
        {
            "id": 1,
            "conv_A": [user(), assistant(BAD)],
            "conv_B": [user(), assistant(GOOD)],
            "conv_A_rating": 1.0,
            "conv_B_rating": 4.0,
        },
    ),
    "OpenAssistant, trees": (
        "oasst_tree",
        {
            "message_tree_id": "t",
            "tree_state": "ready_for_export",
            "prompt": {
                "text": QUESTION,
                "role": "prompter",
                "replies": [
                    {"text": BAD, "role": "assistant", "rank": 1, "replies": []},
                    {"text": GOOD, "role": "assistant", "rank": 0, "replies": []},
                ],
            },
        },
    ),
    # verdicts
    "lmsys/chatbot_arena_conversations": ("judged", arena("model_b", judge="j", turn=1, language="English")),
    "lmarena-ai/arena-human-preference-100k": ("judged", arena("model_b", turn=1, anony=True)),
    "lmarena-ai/arena-human-preference-140k": (
        "judged",
        arena("model_b")
        | {
            "conversation_a": [{"role": "user", "content": PARTS}, assistant(BAD)],
            "conversation_b": [{"role": "user", "content": PARTS}, assistant(GOOD)],
        },
    ),
    "lmarena-ai/arena-human-preference-55k": (
        "judged",
        {
            "id": 1,
            "model_a": "x",
            "model_b": "y",
            "prompt": json.dumps([QUESTION]),
            "response_a": json.dumps([GOOD]),
            "response_b": json.dumps([BAD]),
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        },
    ),
    "lmsys/mt_bench_human_judgments": (
        "judged",
        arena("model_b", judge="expert_1", turn=1)
        | {
            "conversation_a": [user(), assistant(BAD), user("Why?"), assistant("x")],
            "conversation_b": [user(), assistant(GOOD), user("Why?"), assistant("y")],
        },
    ),
    "PKU-Alignment/PKU-SafeRLHF": (
        "judged",
        {
            "prompt": QUESTION,
            "response_0": BAD,
            "response_1": GOOD,
            "is_response_0_safe": True,
            "better_response_id": 1,
            "safer_response_id": 0,
        },
    ),
    "nvidia/HelpSteer2, preference": (
        "judged",
        {"split": "train", "prompt": QUESTION, "response_1": GOOD, "response_2": BAD, "preference_strength": -2},
    ),
    "nvidia/HelpSteer3": (
        "judged",
        {
            "domain": "general",
            "context": [user()],
            "response1": BAD,
            "response2": GOOD,
            "overall_preference": 3,
            "individual_preference": [],
        },
    ),
    "LLMBar": ("judged", {"input": QUESTION, "output_1": BAD, "output_2": GOOD, "label": 2}),
    "PandaLM": (
        "judged",
        {
            "idx": 1,
            "instruction": "Capital of",
            "input": "France?",
            "response1": GOOD,
            "response2": BAD,
            "annotator1": 1,
            "annotator2": 2,
            "annotator3": 1,
        },
    ),
    "tatsu-lab/alpaca_farm": (
        "judged",
        {"instruction": QUESTION, "input": "", "output_1": BAD, "output_2": GOOD, "preference": 2},
    ),
    "AlpacaEval": (
        "judged",
        {
            "instruction": QUESTION,
            "output_1": BAD,
            "generator_1": "x",
            "output_2": GOOD,
            "generator_2": "y",
            "annotator": "weighted_alpaca_eval_gpt4_turbo",
            "preference": 1.9987,
        },
    ),
    "ScalerLab/JudgeBench": (
        "judged",
        {"question": QUESTION, "response_model": "x", "response_A": BAD, "response_B": GOOD, "label": "B>A"},
    ),
    "a judge's verdict": ("judged", {"question": QUESTION, "answer_a": BAD, "answer_b": GOOD, "verdict": "[[B]]"}),
    "a question, and answers as messages": (
        "judged",
        {"prompt": [user()], "response_a": [assistant(BAD)], "response_b": [assistant(GOOD)], "winner": "b"},
    ),
    "a model's name": (
        "judged",
        {
            "prompt": QUESTION,
            "model_a": "x-7b",
            "model_b": "y-7b",
            "response_a": BAD,
            "response_b": GOOD,
            "winner": "y-7b",
        },
    ),
    "prometheus-eval/Preference-Collection": (
        "judged",
        {
            "orig_instruction": QUESTION,
            "orig_response_A": BAD,
            "orig_response_B": GOOD,
            "orig_preference": "B",
            "orig_criteria": "x",
        },
    ),
    "stanfordnlp/SHP": (
        "shp",
        {
            "post_id": "x",
            "history": QUESTION,
            "human_ref_A": BAD,
            "human_ref_B": GOOD,
            "labels": 0,
            "score_A": 2,
            "score_B": 9,
        },
    ),
}
"""Format and row of each shape, all of which say one thing: to QUESTION, GOOD is better than BAD."""

SEVERAL_ROWS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "nvidia/HelpSteer": ("helpsteer", [steered("Nice.", 2), steered(GOOD, 4), steered(BAD, 0)][1:]),
    "nvidia/HelpSteer2": ("helpsteer", [steered(BAD, 1), steered(GOOD, 4)]),
    "OpenAssistant/oasst1": (
        "oasst",
        [
            oasst("1", None, "prompter", QUESTION),
            oasst("2", "1", "assistant", BAD, 1),
            oasst("3", "1", "assistant", GOOD, 0),
            oasst("4", "3", "prompter", "Why?"),
        ],
    ),
}
"""The same of shapes whose pair is in several rows."""

NO_PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "KTO": ("KTO", {"prompt": QUESTION, "completion": GOOD, "label": True}),
    "trl-lib/kto-mix-14k": ("KTO", {"prompt": [user()], "completion": [assistant(GOOD)], "label": False}),
    "LLaMA-Factory, KTO": ("KTO", {"messages": [user(), assistant(GOOD)], "label": True}),
    "Alpaca": ("SFT", {"instruction": QUESTION, "input": "", "output": GOOD}),
    "messages": ("SFT", {"messages": [user(), assistant(GOOD)]}),
    "ShareGPT": ("SFT", {"id": "x", "conversations": [human(), gpt(GOOD)]}),
    "prompt and completion": ("SFT", {"prompt": QUESTION, "completion": GOOD}),
    "question and answer": ("SFT", {"question": QUESTION, "answer": GOOD}),
    "plain text": ("SFT", {"text": "Paris is the capital of France."}),
    "prompts": ("prompts without answers", {"prompt": QUESTION}),
    "rated answers": ("score", {"prompt": QUESTION, "response": GOOD, "score": 4.0}),
    "trl-lib/prm800k": ("steps of reasoning", {"prompt": QUESTION, "completions": ["a", "b"], "labels": [True, False]}),
    "axolotl, stepwise_supervised": (
        "steps of reasoning",
        {"prompt": QUESTION, "completions": ["a", "b"], "labels": [1, 0]},
    ),
    "doccano": ("classifier", {"id": 1, "text": GOOD, "label": ["city"]}),
    "verl": (
        "for RL",
        {"data_source": "x", "prompt": [user()], "ability": "math", "reward_model": {"ground_truth": "1"}},
    ),
    "two answers without a verdict": (
        "which of them is better",
        {"id": "1", "prompt": QUESTION, "response_a": GOOD, "response_b": BAD},
    ),
    "two answers without a question": ("what was asked", {"text_1": GOOD, "text_2": BAD, "winner": "1"}),
    "answers without scores": ("none is said to be better", {"prompt": QUESTION, "responses": [GOOD, BAD], "n": 2}),
    "answers that nobody compared": ("nobody has compared", {"prompt": QUESTION, "answers": [GOOD, BAD]}),
    "pictures": ("pictures", {"image": "a.png", "question": QUESTION, "answer": GOOD}),
}
"""What is no preference data, and a word of what it is called."""
