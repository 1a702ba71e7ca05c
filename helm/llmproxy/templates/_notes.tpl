{{/* Recommendations for this installation, one per line. */}}

{{- define "llmproxy.notes" -}}
{{- $v := .Values -}}
{{- $c := $v.config -}}
{{- $auth := dig "auth" dict $c -}}
{{- if and (not $v.existingConfigMap) (or (not $auth) (eq (toString (get $auth "enabled")) "false")) }}
- Every client that reaches the gateway may call it: config.auth is not set.
{{- end }}
{{- $usage := dig "usage" dict $c }}
{{- if not (or $v.existingConfigMap (get $usage "reporters") (get $usage "usage_hook") (get $c "usage_hook") $v.admin.enabled) }}
- Usage is not reported: config.usage.reporters is not set.
{{- else if not $v.persistence.enabled }}
- Undelivered usage records are lost with their pod: persistence.enabled keeps them.
{{- end }}
{{- if include "llmproxy.several" . }}
{{- if and (dig "rate_limit" "" $c) (ne (dig "rate_limit" "storage" "memory" $c) "redis") }}
- Limits apply to each gateway separately: config.rate_limit.storage: redis counts them together.
{{- end }}
{{- range dig "reporters" list $usage }}
{{- if eq (toString .type) "builtin" }}
- Each gateway has its own table of usage: a reporter of type database collects the usage of all.
{{- end }}
{{- end }}
{{- else }}
- There is only one gateway: requests fail while it is replaced or its node is down.
{{- end }}
{{- if and $v.admin.enabled (not $v.networkPolicy.enabled) }}
- Every pod of the cluster can reach the admin API, which only the token protects: networkPolicy.enabled limits access.
{{- end }}
{{- if $v.simulator.enabled }}
- The simulator returns generated text, not that of a model.
{{- end }}
{{- if not (or $v.serviceMonitor.enabled $v.existingConfigMap) }}
- The metrics are not scraped: serviceMonitor.enabled, prometheusRule.enabled and dashboard.enabled are off.
{{- end }}
{{- end -}}
