use super::*;

fn line(arguments: &[&str]) -> CommandLine {
    flags::parse(
        &arguments
            .iter()
            .map(|a| (*a).to_owned())
            .collect::<Vec<_>>(),
    )
    .unwrap()
}

fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
        .collect()
}

#[test]
fn with_a_file_flags_and_variables_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("etcd.yml");
    std::fs::write(&path, "name: from-file\n").unwrap();
    let path = path.to_str().unwrap();
    let environment = variables(&[("ETCD_NAME", "v"), ("ETCD_SNAPSHOT_COUNT", "x")]);
    let by_flag = line(&["--config-file", path, "--name=f", "--snapshot-count=7"]);
    let (config, notes) = gather(by_flag, &environment).unwrap();
    assert_eq!(
        (config.name.as_str(), config.snapshot_count),
        ("from-file", 10_000)
    );
    assert_eq!(notes, [Note::File(path.to_owned())]);
    let by_variable = variables(&[("ETCD_CONFIG_FILE", path)]);
    let (config, _) = gather(line(&["--name=f"]), &by_variable).unwrap();
    assert_eq!(config.name, "from-file");
}

#[test]
fn a_data_directory_is_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    assert_eq!(look_into(&at("missing")).unwrap(), Found::Nothing);
    assert_eq!(look_into(folder.path()).unwrap(), Found::Nothing);
    std::fs::write(at("other"), "x").unwrap();
    assert_eq!(look_into(folder.path()).unwrap(), Found::Nothing);
    std::fs::create_dir(at("proxy")).unwrap();
    assert_eq!(look_into(folder.path()).unwrap(), Found::Proxy);
    std::fs::create_dir(at("member")).unwrap();
    assert_eq!(look_into(folder.path()).unwrap(), Found::Both);
    std::fs::remove_dir(at("proxy")).unwrap();
    assert_eq!(look_into(folder.path()).unwrap(), Found::Member);
    assert!(look_into(&at("other")).is_err(), "a file is no directory");
}
