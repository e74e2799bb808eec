"""Models come in; what they can do goes out: LongBench, RULER, needles, and what judges and people say of their answers.

Read `metrics`, `rows`, `results` (figures of a task, kept), `tasks` (the list of them), `answering` and `generation` (a model's
answers), `harness` (LongBench and RULER), `needle_map`, `needle`, `planted_needle`; then `judging`, `longbench_chat`,
`longbench_judged`, `mt_bench`, `characteristics`, `markdown_html`, `human_sheet`, `human_tally`; and `command`.
"""
