"""The parts of a detection transformer, and the detector built from them.

One image through Sparse DETR, from `forward` to boxes, passes these eight files; beside them only the checks of the
input and the sigmoid of the scores run:

    detector.py                 images in: normalise, pad, remember the sizes
    transformer.py              the flow: tokenize, encode, query, decode
    tokenizers/multi_scale.py   backbone maps -> tokens (B, N, C), with positions and a `Pyramid`, their geometry
    heads.py                    a proposal for every token: box, projection, head; the heads of the decoder
    selection/selector.py       a score for every token; the best are kept, as many as the budget of the call says
    encoder/deformable.py       the kept tokens (B, K, C) attend to all tokens; the result is written back
    queries/topk.py             the Q best encoded tokens become queries: content, position, reference box
    decoder/deformable.py       queries attend to each other and to the tokens; every layer moves its boxes
    detector.py                 the best (query, class) pairs -> `Instances` in pixels of the image

The parts of other models are in the same folders. `training/` holds what only losses need, `classification.py` says
what a logit means, `inputs.py` checks the inputs of a model; `sparse_detr.recipes` says which parts make which model.

Shape letters: B images, N tokens of all levels, K kept tokens, Q queries, T true boxes, C channels of a token
(`embed_dim`), L levels, P points, M heads, D = C / M.

Masks have three names. `padding_mask` is True on padding. `valid` and `keep` are True on what counts: `valid` on rows
of the image, False on rows that only fill the batch; `keep` on what is chosen or may be chosen. `attention_mask` joins
`valid` and `keep` to the `mask` of full attention: True where a query may attend to a key.

Boxes are cxcywh in [0, 1] of the unpadded image, unless a name says otherwise (`*_logits`, `*_xyxy`, `*_abs`).
"""
