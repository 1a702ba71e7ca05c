{{/* What an installation may lack, a line each. */}}

{{- define "llmproxy.notes" -}}
{{- $v := .Values -}}
{{- $c := $v.config -}}
{{- $auth := dig "auth" dict $c -}}
{{- if and (not $v.existingConfigMap) (or (not $auth) (eq (toString (get $auth "enabled")) "false")) }}
- Everybody who reaches it may call it: config.auth is not set.
{{- end }}
{{- $usage := dig "usage" dict $c }}
{{- if not (or $v.existingConfigMap (get $usage "reporters") (get $usage "usage_hook") (get $c "usage_hook") $v.admin.enabled) }}
- Nobody is told of usage: config.usage.reporters is not set.
{{- else if not $v.persistence.enabled }}
- Usage records that were not delivered are lost with their pod: persistence.enabled keeps them.
{{- end }}
{{- if include "llmproxy.several" . }}
{{- if and (dig "rate_limit" "" $c) (ne (dig "rate_limit" "storage" "memory" $c) "redis") }}
- Each gateway counts its limits for itself: config.rate_limit.storage: redis counts them together.
{{- end }}
{{- range dig "reporters" list $usage }}
{{- if eq (toString .type) "builtin" }}
- Each gateway has a table of usage of its own: a reporter of type database has that of all.
{{- end }}
{{- end }}
{{- else }}
- There is one gateway: while it is replaced or its node is gone, nobody is served.
{{- end }}
{{- if and $v.admin.enabled (not $v.networkPolicy.enabled) }}
- Every pod of the cluster reaches the admin API and needs only its token: networkPolicy.enabled closes it.
{{- end }}
{{- if $v.simulator.enabled }}
- The simulator answers with made-up words.
{{- end }}
{{- if not (or $v.serviceMonitor.enabled $v.existingConfigMap) }}
- Nobody scrapes the metrics: serviceMonitor.enabled, prometheusRule.enabled and dashboard.enabled are off.
{{- end }}
{{- end -}}
