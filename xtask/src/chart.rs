//! The generated parts of the Helm chart: CRDs that stay when the chart goes, the operator's rights from its own list, and the
//! README's table from the comments of values.yaml. `--check` compares.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use m1_operator_plan::rbac::{self, Rule};

use crate::generated::Generated;

const CHART: &str = "charts/minimax-m1-operator";

/// The generated files.
pub fn generated(root: &Path) -> anyhow::Result<Generated> {
    let mut files = Vec::new();
    for crd in m1_operator_api::crd_files() {
        let mut object = crd.object;
        object["metadata"]["annotations"]["helm.sh/resource-policy"] = "keep".into();
        files.push((format!("{CHART}/files/crds/{}", crd.name), serde_saphyr::to_string(&object)?));
    }
    files.push((format!("{CHART}/templates/_rules.tpl"), rules()));
    let values = fs::read_to_string(root.join(CHART).join("values.yaml"))?;
    files.push((format!("{CHART}/README.md"), readme(&values)));
    Ok(Generated { command: "chart", source: "the code", files })
}

fn rules() -> String {
    let mut text = String::from("{{- /* Written by `cargo xtask chart` from operator/plan/src/rbac.rs. */}}\n");
    let lists = [
        ("minimax-m1-operator.rules", rbac::RULES),
        ("minimax-m1-operator.rules.cluster", rbac::CLUSTER_RULES),
        ("minimax-m1-operator.rules.own", rbac::OWN_RULES),
        ("minimax-m1-operator.rules.tls", rbac::TLS_RULES),
    ];
    for (name, rules) in lists {
        let _ = writeln!(text, "{{{{- define \"{name}\" -}}}}");
        for rule in rules {
            text.push_str(&one(rule));
        }
        text.push_str("{{- end }}\n");
    }
    text
}

fn one(rule: &Rule) -> String {
    let list = |words: &[&str]| words.join(", ");
    let group = if rule.group.is_empty() { "\"\"" } else { rule.group };
    format!("# {}\n- apiGroups: [{group}]\n  resources: [{}]\n  verbs: [{}]\n", rule.reason, list(rule.resources), list(rule.verbs))
}

/// A value of the chart: its path, its default, and what its comment says.
#[derive(Debug, PartialEq, Eq)]
struct Value {
    path: String,
    default: String,
    text: String,
}

/// Reads the `# --` comments of values.yaml: each describes the key after it, whose default may go on over deeper lines.
fn values(text: &str) -> Vec<Value> {
    let (mut found, mut parents): (Vec<Value>, Vec<(usize, String)>) = (Vec::new(), Vec::new());
    let mut comment: Option<String> = None;
    let mut inside: Option<usize> = None;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let content = line.trim();
        if let Some(words) = content.strip_prefix("# -- ") {
            (comment, inside) = (Some(words.to_owned()), None);
            continue;
        }
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        if let (Some(depth), Some(last)) = (inside, found.last_mut())
            && indent > depth
        {
            let gap = if last.default.is_empty() { "" } else { "; " };
            last.default = format!("{}{gap}{content}", last.default);
            continue;
        }
        let Some((key, value)) = content.split_once(':') else { continue };
        parents.retain(|(depth, _)| *depth < indent);
        let path = parents.iter().map(|(_, key)| key.as_str()).chain([key]).collect::<Vec<_>>().join(".");
        parents.push((indent, key.to_owned()));
        inside = None;
        if let Some(text) = comment.take() {
            found.push(Value { path, default: value.trim().to_owned(), text });
            inside = Some(indent);
        }
    }
    found
}

fn readme(yaml: &str) -> String {
    let mut text = String::from(
        "# minimax-m1-operator\n\nThe operator that serves MiniMax-M1 on Kubernetes. How to install it: \
         [docs/install.md](../../docs/install.md).\n\n```\nhelm install minimax-m1-operator charts/minimax-m1-operator -n \
         minimax-m1-system --create-namespace\n```\n\nThe CRDs are part of the chart's templates: an upgrade upgrades them, and they \
         stay when the chart is removed. Rights come from the operator's own list, each with its reason; it reaches Secrets only in the namespaces of `tls.namespaces`.\n\n## \
         Values\nWritten by `cargo xtask chart` from the comments in `values.yaml`; `values.schema.json` checks what is given.\n\n\
         | value | default | meaning |\n|---|---|---|\n",
    );
    for value in values(yaml) {
        let default = if value.default.is_empty() { "(empty)".to_owned() } else { format!("`{}`", value.default) };
        let _ = writeln!(text, "| `{}` | {default} | {} |", value.path, value.text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_become_rows() {
        let text = "# -- How many.\ncount: 1\n\nimage:\n  # -- Its tag.\n  tag: \"\"\n# -- Rights.\nresources:\n  requests:\n    cpu: 1\nother: 2\n";
        let rows: Vec<String> = values(text).iter().map(|v| format!("{}={}: {}", v.path, v.default, v.text)).collect();
        assert_eq!(rows, ["count=1: How many.", "image.tag=\"\": Its tag.", "resources=requests:; cpu: 1: Rights."]);
    }

    #[test]
    fn every_value_of_the_chart_is_described() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let values = values(&fs::read_to_string(root.join(CHART).join("values.yaml")).unwrap());
        assert!(values.len() > 25, "{values:?}");
        assert!(values.iter().all(|value| value.text.ends_with('.') || value.text.ends_with("`.")), "{values:?}");
    }
}
