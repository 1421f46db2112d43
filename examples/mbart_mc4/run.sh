#!/usr/bin/env bash
# One recipe from download to score: ./run.sh 12x384_cka
# Started again, it continues where it was interrupted.
set -euo pipefail
cd "$(dirname "$0")"
recipe=${1:-12x384_cka}
if [ ! -f "$recipe.yaml" ]; then
    echo "run.sh: no recipe $recipe.yaml here" >&2
    exit 2
fi

for pair in ar:ar_AR cs:cs_CZ de:de_DE en-multi:en_XX es:es_XX et:et_EE fi:fi_FI fr:fr_XX gu:gu_IN hi:hi_IN it:it_IT ja:ja_XX kk:kk_KZ ko:ko_KR lt:lt_LT lv:lv_LV my:my_MM ne:ne_NP nl:nl_XX ro:ro_RO ru:ru_RU si:si_LK tr:tr_TR vi:vi_VN zh:zh_CN af:af_ZA az:az_AZ bn:bn_IN fa:fa_IR iw:he_IL id:id_ID ka:ka_GE km:km_KH mk:mk_MK ml:ml_IN mn:mn_MN mr:mr_IN pl:pl_PL ps:ps_AF pt:pt_XX sv:sv_SE sw:sw_KE ta:ta_IN te:te_IN th:th_TH uk:uk_UA ur:ur_PK xh:xh_ZA gl:gl_ES sl:sl_SI; do
    code=${pair#*:}
    [ -f "work/$code.jsonl" ] || python ../c4_sample.py --language "${pair%:*}" --output "work/$code.jsonl"
    cktk-preprocess --task pretraining --lang "$code" --valid-file "work/$code.jsonl" \
        --tokenizer facebook/mbart-large-50 --dest-dir "work/$code"
done
cktk-train --config "$recipe.yaml"
